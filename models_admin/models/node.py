"""Machines on which node workers run."""

from datetime import timedelta
from typing import ClassVar

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.functions import Now

# Longer than a few heartbeats, shorter than a person's patience.
SILENT_AFTER = timedelta(seconds=20)


def check_texts(value: object) -> None:
    """Validate a list of short words."""
    if not isinstance(value, list) or not all(
        isinstance(word, str) and 0 < len(word) <= 60 for word in value
    ):
        raise ValidationError("This is a list of short texts.")


def check_paths(value: object) -> None:
    """Validate a list of absolute paths."""
    if not isinstance(value, list) or not all(
        isinstance(path, str) and path.startswith("/") and len(path) <= 1024 for path in value
    ):
        raise ValidationError("This is a list of absolute paths.")


class NodeQuerySet(models.QuerySet["Node"]):
    """Nodes, by whether they are there. The database's clock decides: machines' own may be wrong."""

    def alive(self) -> "NodeQuerySet":
        """Those whose worker announced itself lately."""
        return self.filter(last_seen__gte=Now() - SILENT_AFTER)

    def silent(self) -> "NodeQuerySet":
        """The others."""
        return self.exclude(last_seen__gte=Now() - SILENT_AFTER)


class Node(models.Model):
    """A machine on which a node worker runs. What it has is what its worker last said."""

    name = models.CharField(max_length=100, unique=True)
    address = models.CharField(
        max_length=255,
        default="127.0.0.1",
        help_text="Where its llama-servers listen; it must be private, and the portal must reach it.",
    )
    labels = models.JSONField(default=list, blank=True, validators=[check_texts])
    accepts_replicas = models.BooleanField(
        default=True, help_text="Off: what runs goes on, nothing new is placed here."
    )
    memory_limit_bytes = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="What all replicas together may take; empty: memory less the reserve.",
    )
    cpu_count = models.PositiveIntegerField(default=0)
    memory_bytes = models.BigIntegerField(default=0)
    memory_free_bytes = models.BigIntegerField(null=True, blank=True)
    # [{"index": 0, "name": "…", "memory_bytes": …, "free_bytes": …, "by_pid": {"123": bytes}}, …]
    gpus = models.JSONField(default=list, blank=True)
    engine = models.CharField(max_length=200, blank=True)
    # What its settings allow: MODELS_DIR, and the programs that a model may name.
    model_folders = models.JSONField(default=list, blank=True, editable=False)
    programs = models.JSONField(default=list, blank=True, editable=False)
    # By the database's clock.
    last_seen = models.DateTimeField(null=True, blank=True)
    # The data folder whose worker announces itself under this name: a second machine can't take it.
    machine = models.CharField(max_length=32, blank=True, editable=False)

    objects = NodeQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def is_alive(self) -> bool:
        """True while its worker announces itself. Asks the database, whose clock decides."""
        return Node.objects.alive().filter(pk=self.pk).exists()

    def room_bytes(self, reserve_bytes: int) -> int:
        """What all replicas here may take together: the limit somebody has set, else the memory less the reserve."""
        if self.memory_limit_bytes is not None:
            return self.memory_limit_bytes
        return max(0, self.memory_bytes - reserve_bytes)
