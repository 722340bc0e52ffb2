"""Models as people know them."""

from typing import ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone

from accounts.models import ApiKey, Team, User
from models_admin.models.external import ExternalServer
from models_admin.models.file import ModelFile
from models_admin.models.node import check_texts
from models_admin.models.parameters import LaunchParameters


class ServedModelQuerySet(models.QuerySet["ServedModel"]):
    """Served models, by who may do what with them."""

    def visible_to(self, user: User) -> "ServedModelQuerySet":
        """Those the person may use: open to everybody, or to one of their teams. Staff see all."""
        if user.is_staff:
            return self
        return self.filter(models.Q(teams__isnull=True) | models.Q(teams__members=user)).distinct()

    def usable_by(self, user: User, key: ApiKey | None = None) -> "ServedModelQuerySet":
        """Those the person may use; with a key only what it opens, a team's key what the team may use."""
        found = self.visible_to(user)
        if key is not None and key.team_id is not None:
            found = self.filter(models.Q(teams__isnull=True) | models.Q(teams=key.team_id)).distinct()
        return found.filter(slug__in=key.model_slugs) if key is not None and key.model_slugs else found

    def manageable_by(self, user: User) -> "ServedModelQuerySet":
        """Those the person may start, stop and change."""
        return self if user.is_staff else self.none()

    def wanted(self) -> "ServedModelQuerySet":
        """Those that answer, now or once they are loaded."""
        return self.filter(models.Q(enabled=True) | models.Q(desired_replicas__gt=0))


class ServedModel(LaunchParameters):
    """A model as people know it, and what administrators want of it: from a file, or from an external server."""

    slug = models.SlugField(max_length=100, unique=True)
    name = models.CharField(max_length=120)
    description = models.TextField(blank=True)
    file = models.ForeignKey(
        ModelFile, null=True, blank=True, on_delete=models.PROTECT, related_name="served"
    )
    external = models.ForeignKey(
        ExternalServer, null=True, blank=True, on_delete=models.PROTECT, related_name="served"
    )
    external_name = models.CharField(max_length=200, blank=True, help_text="What that server calls it.")
    teams = models.ManyToManyField(
        Team, blank=True, related_name="models", help_text="Nobody chosen: open to everybody."
    )
    enabled = models.BooleanField(default=False, help_text="Off: it is not loaded, whoever asks for it.")
    min_replicas = models.PositiveSmallIntegerField(
        default=1,
        validators=[MaxValueValidator(16)],
        help_text="How many always run; 0 loads the model when somebody asks for it.",
    )
    max_replicas = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(16)],
        help_text="How many may run when many wait.",
    )
    # Between the two, and 0 while not enabled: what the scheduler wants now.
    desired_replicas = models.PositiveSmallIntegerField(default=0, validators=[MaxValueValidator(16)])
    idle_timeout_s = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="When a replica nobody uses is unloaded; empty: the portal's default.",
    )
    pinned = models.BooleanField(
        default=False, help_text="Once loaded it is never unloaded to make room for another."
    )
    preload = models.BooleanField(
        default=False, help_text="Loaded when the portal starts, though it is loaded on demand."
    )
    node_labels = models.JSONField(
        default=list, blank=True, validators=[check_texts], help_text="Labels a node must have to run it."
    )
    answer_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(16)],
        help_text="Where an answer in a chat is cut off. Empty: when the context is full.",
    )
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    desired_since = models.DateTimeField(default=timezone.now, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ServedModelQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=models.Q(file__isnull=True) ^ models.Q(external__isnull=True),
                name="from_a_file_or_external",
            )
        ]

    def __str__(self) -> str:
        return self.slug

    @property
    def on_demand(self) -> bool:
        """True where it is loaded when somebody asks for it."""
        return self.min_replicas == 0
