"""Replicas of served models."""

import uuid
from functools import partial
from typing import Any, ClassVar

from django.db import models, transaction
from django.utils import timezone

from models_admin import events, secret_box
from models_admin.errors import IllegalMove
from models_admin.models.file import ModelFile
from models_admin.models.node import Node
from models_admin.models.served import ServedModel
from models_admin.states import MOVES, InstanceState


class InstanceQuerySet(models.QuerySet["Instance"]):
    """Instances, by what they can do."""

    def serving(self) -> "InstanceQuerySet":
        """Those a request may be routed to."""
        return self.filter(state=InstanceState.READY)

    def current(self) -> "InstanceQuerySet":
        """Those that are not history."""
        return self.exclude(state=InstanceState.STOPPED)


class Instance(models.Model):
    """One replica of a served model: a llama-server on a node, or what an external server has of it.

    `node` is empty while no place has been found, and always for an external one.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    served = models.ForeignKey(ServedModel, on_delete=models.CASCADE, related_name="instances")
    node = models.ForeignKey(Node, null=True, blank=True, on_delete=models.CASCADE, related_name="instances")
    file = models.ForeignKey(
        ModelFile, null=True, blank=True, on_delete=models.SET_NULL, related_name="instances"
    )
    state = models.CharField(
        max_length=12, choices=InstanceState, default=InstanceState.PENDING, db_index=True
    )
    reason = models.TextField(blank=True, help_text="Why it is in this state, in words.")
    port = models.PositiveIntegerField(null=True, blank=True)
    pid = models.PositiveIntegerField(null=True, blank=True)
    pid_created = models.FloatField(
        null=True, blank=True, help_text="Start time of the process, seconds since 1970."
    )
    api_key_encrypted = models.BinaryField(default=b"", editable=False)
    crashes = models.PositiveIntegerField(default=0, help_text="Crashes since it last was ready for long.")
    faults = models.PositiveIntegerField(default=0, help_text="Those of them that were its own fault.")
    retry_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    started_at = models.DateTimeField(null=True, blank=True)
    ready_at = models.DateTimeField(null=True, blank=True)
    state_since = models.DateTimeField(default=timezone.now)
    unhealthy_since = models.DateTimeField(null=True, blank=True)
    term_at = models.DateTimeField(null=True, blank=True, help_text="When it was asked to end.")
    # What it was launched with: another value than the model's present one makes it outdated.
    launched = models.JSONField(default=dict, blank=True, editable=False)
    expected_bytes = models.BigIntegerField(null=True, blank=True, help_text="Estimated before it started.")
    memory_bytes = models.BigIntegerField(null=True, blank=True)
    progress = models.PositiveSmallIntegerField(null=True, blank=True, help_text="Of loading, percent.")
    cause = models.CharField(max_length=30, blank=True, help_text="Why it crashed, as its log says.")
    last_used_at = models.DateTimeField(null=True, blank=True)

    objects = InstanceQuerySet.as_manager()

    class Meta:
        ordering = ["created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["node", "port"],
                condition=models.Q(port__isnull=False),
                name="one_instance_per_port",
            )
        ]

    def __str__(self) -> str:
        return f"{self.served.slug}@{self.place}"

    @property
    def place(self) -> str:
        """Where it runs, in a word."""
        if self.served.external is not None:
            return self.served.external.name
        return self.node.name if self.node else "nowhere yet"

    @property
    def base_url(self) -> str:
        """Where its HTTP server listens; OpenAI's paths begin with /v1 there."""
        if self.served.external is not None:
            return self.served.external.base_url.removesuffix("/v1")
        host = str(self.launched.get("host") or (self.node.address if self.node else ""))
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def api_key(self) -> str:
        """The key of its HTTP server; empty where it can't be read any more."""
        if self.served.external is not None:
            return self.served.external.api_key
        return secret_box.unseal(bytes(self.api_key_encrypted)) if self.api_key_encrypted else ""

    def move_to(self, new: InstanceState, reason: str = "", **fields: Any) -> bool:
        """Go to `new`. False when another process moved this row first; `IllegalMove` for a jump no state allows."""
        old = InstanceState(self.state)
        if new not in MOVES[old]:
            raise IllegalMove(f"{self} is {old}; it cannot become {new}")
        now = timezone.now()
        fields |= {"state": new, "reason": reason, "state_since": now}
        with transaction.atomic():
            if not Instance.objects.filter(pk=self.pk, state=old).update(**fields):
                return False
            self.changes.create(old=old, new=new, reason=reason, at=now)
            transaction.on_commit(partial(events.instance_changed, self.served_id, self.pk))
        for name, value in fields.items():
            setattr(self, name, value)
        return True


class InstanceChange(models.Model):
    """One move of an instance: its timeline."""

    instance = models.ForeignKey(Instance, on_delete=models.CASCADE, related_name="changes")
    old = models.CharField(max_length=12)
    new = models.CharField(max_length=12)
    reason = models.TextField(blank=True)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-at", "-pk"]

    def __str__(self) -> str:
        return f"{self.old} → {self.new}"
