"""The catalog (nodes, files, served models) and what runs of it (instances)."""

import uuid
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.utils import timezone

from accounts.models import Team, User
from models_admin import events, secret_box
from models_admin.errors import IllegalMove
from models_admin.states import MOVES, InstanceState

# Longer than a few heartbeats, shorter than a person's patience.
SILENT_AFTER = timedelta(seconds=20)


class NodeQuerySet(models.QuerySet["Node"]):
    """Nodes, by whether they are there."""

    def alive(self) -> "NodeQuerySet":
        """Those whose worker announced itself lately."""
        return self.filter(last_seen__gte=timezone.now() - SILENT_AFTER)


class Node(models.Model):
    """A machine on which a node worker runs."""

    name = models.CharField(max_length=100, unique=True)
    address = models.CharField(max_length=255, default="127.0.0.1")
    cpu_count = models.PositiveIntegerField(default=0)
    memory_bytes = models.BigIntegerField(default=0)
    last_seen = models.DateTimeField(null=True, blank=True)

    objects = NodeQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def is_alive(self) -> bool:
        """True while its worker announces itself."""
        return self.last_seen is not None and timezone.now() - self.last_seen < SILENT_AFTER


class ModelFile(models.Model):
    """A file found by a scan of a node's model folders. `error` says why it can't be served."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="files")
    path = models.CharField(max_length=1024)
    size_bytes = models.BigIntegerField()
    modified_at = models.DateTimeField()
    name = models.CharField(max_length=200, blank=True)
    architecture = models.CharField(max_length=80, blank=True)
    parameters = models.BigIntegerField(null=True, blank=True)
    quantization = models.CharField(max_length=40, blank=True)
    context_tokens = models.PositiveIntegerField(null=True, blank=True)
    chat_template = models.TextField(blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    error = models.TextField(blank=True)
    missing = models.BooleanField(default=False)
    scanned_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["path"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["node", "path"], name="one_row_per_file")]

    def __str__(self) -> str:
        return self.path


class ServedModelQuerySet(models.QuerySet["ServedModel"]):
    """Served models, by who may do what with them."""

    def visible_to(self, user: User) -> "ServedModelQuerySet":
        """Those the person may use: open to everybody, or to one of their teams. Staff see all."""
        if user.is_staff:
            return self
        return self.filter(models.Q(teams__isnull=True) | models.Q(teams__members=user)).distinct()

    def manageable_by(self, user: User) -> "ServedModelQuerySet":
        """Those the person may start, stop and change."""
        return self if user.is_staff else self.none()

    def wanted(self) -> "ServedModelQuerySet":
        """Those of which at least one replica should run."""
        return self.filter(desired_replicas__gt=0)


class ServedModel(models.Model):
    """A model as people know it, and what administrators want of it."""

    slug = models.SlugField(max_length=100, unique=True)
    name = models.CharField(max_length=120)
    description = models.TextField(blank=True)
    file = models.ForeignKey(ModelFile, on_delete=models.PROTECT, related_name="served")
    teams = models.ManyToManyField(
        Team, blank=True, related_name="models", help_text="Nobody chosen: open to everybody."
    )
    desired_replicas = models.PositiveSmallIntegerField(default=0, validators=[MaxValueValidator(16)])
    context_tokens = models.PositiveIntegerField(
        default=4096, validators=[MinValueValidator(256)], help_text="Context size of each slot."
    )
    slots = models.PositiveSmallIntegerField(
        default=4, validators=[MinValueValidator(1), MaxValueValidator(64)]
    )
    answer_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(16)],
        help_text="Where an answer in a chat is cut off. Empty: when the context is full.",
    )
    threads = models.PositiveSmallIntegerField(null=True, blank=True, help_text="Empty: the engine decides.")
    gpu_layers = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="Empty: the engine decides."
    )
    batch_tokens = models.PositiveIntegerField(default=2048, validators=[MinValueValidator(32)])
    ubatch_tokens = models.PositiveIntegerField(default=512, validators=[MinValueValidator(32)])
    extra_flags = models.JSONField(
        default=list, blank=True, help_text='Further flags of llama-server, as a list: ["--mlock"].'
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ServedModelQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.slug


class InstanceQuerySet(models.QuerySet["Instance"]):
    """Instances, by what they can do."""

    def serving(self) -> "InstanceQuerySet":
        """Those a request may be routed to."""
        return self.filter(state=InstanceState.READY)

    def current(self) -> "InstanceQuerySet":
        """Those that are not history."""
        return self.exclude(state=InstanceState.STOPPED)


class Instance(models.Model):
    """One llama-server process: a replica of a served model on a node."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    served = models.ForeignKey(ServedModel, on_delete=models.CASCADE, related_name="instances")
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="instances")
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
    retry_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    started_at = models.DateTimeField(null=True, blank=True)
    ready_at = models.DateTimeField(null=True, blank=True)
    state_since = models.DateTimeField(default=timezone.now)
    unhealthy_since = models.DateTimeField(null=True, blank=True)
    term_at = models.DateTimeField(null=True, blank=True, help_text="When it was asked to end.")
    memory_bytes = models.BigIntegerField(null=True, blank=True)

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
        return f"{self.served.slug}@{self.node.name}"

    @property
    def base_url(self) -> str:
        """Where its HTTP server listens."""
        return f"http://{self.node.address}:{self.port}"

    @property
    def api_key(self) -> str:
        """The key of its HTTP server; empty where it can't be read any more."""
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
