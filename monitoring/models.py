"""Samples of machines and of llama-servers, kept for charts."""

from datetime import datetime, timedelta
from typing import ClassVar

from django.db import models
from django.utils import timezone

from models_admin.models import Node

# A node whose newest sample is older is silent.
FRESH_FOR = timedelta(seconds=10)
KEPT_FOR = timedelta(hours=24)

# The columns that are drawn over time.
CHARTED = (
    "cpu_percent",
    "memory_used_bytes",
    "load_1",
    "network_in_bytes_s",
    "network_out_bytes_s",
    "gpu_percent",
    "generated_tokens_s",
    "prompt_tokens_s",
    "requests_processing",
    "requests_deferred",
)


class SampleQuerySet(models.QuerySet["Sample"]):
    """Samples, by their age."""

    def newest(self, node_name: str | None = None, *, now: datetime | None = None) -> list["Sample"]:
        """The newest sample of every node, or of the named one, where it is fresh."""
        nodes = Node.objects.all() if node_name is None else Node.objects.filter(name=node_name)
        # Named one by one, so that the index on (node, at) finds the few fresh rows.
        recent = self.filter(node__in=list(nodes), at__gte=(now or timezone.now()) - FRESH_FOR)
        return list(recent.select_related("node").order_by("node__name", "-at").distinct("node__name"))


class Sample(models.Model):
    """What a node measured at one moment.

    The columns are what charts over time need; `data` is the whole sample, see `monitoring.sampling.sample_data`.
    """

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="samples", db_index=False)
    at = models.DateTimeField()
    cpu_percent = models.FloatField(null=True)
    memory_used_bytes = models.BigIntegerField()
    load_1 = models.FloatField()
    network_in_bytes_s = models.FloatField(null=True)
    network_out_bytes_s = models.FloatField(null=True)
    gpu_percent = models.FloatField(null=True)
    generated_tokens_s = models.FloatField(null=True)
    prompt_tokens_s = models.FloatField(null=True)
    requests_processing = models.FloatField(null=True)
    requests_deferred = models.FloatField(null=True)
    data = models.JSONField()

    objects = SampleQuerySet.as_manager()

    class Meta:
        # A chart over a day is read from the index alone, without the wide rows.
        indexes: ClassVar = [models.Index(fields=["node", "at"], include=CHARTED, name="sample_chart")]
        get_latest_by = "at"

    def __str__(self) -> str:
        return f"{self.node} {self.at:%H:%M:%S}"
