"""People, teams, API keys and the audit trail."""

import hashlib
import uuid
from typing import TYPE_CHECKING, ClassVar

from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

if TYPE_CHECKING:
    from datetime import datetime


class User(AbstractUser):
    """Somebody who may sign in. `is_staff` administers the portal."""

    @property
    def display_name(self) -> str:
        """The full name, or the username where no name is known."""
        return self.get_full_name() or self.username


class TeamQuerySet(models.QuerySet["Team"]):
    """Teams, by what a person may do with them."""

    def visible_to(self, user: User) -> "TeamQuerySet":
        """One's own; staff see all."""
        return self if user.is_staff else self.filter(memberships__user=user).distinct()

    def manageable_by(self, user: User) -> "TeamQuerySet":
        """Those whose members, invitations and keys the person may change: owners and admins of it, and staff."""
        if user.is_staff:
            return self
        return self.filter(memberships__user=user, memberships__role__in=Membership.MANAGING).distinct()


class Team(models.Model):
    """People who share access to models, limits, prompts and conversations."""

    name = models.CharField(max_length=80, unique=True)
    members = models.ManyToManyField(User, through="Membership", related_name="teams")
    weight = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="Its members' share of a busy model, against 1 for others.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = TeamQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """A person in a team."""

    class Role(models.TextChoices):
        OWNER = "owner"
        ADMIN = "admin"
        MEMBER = "member"

    # Who may invite, remove and make keys.
    MANAGING = (Role.OWNER, Role.ADMIN)

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.MEMBER)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["team", "user"], name="one_membership_per_team")
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.team}"


class InvitationQuerySet(models.QuerySet["Invitation"]):
    """Invitations, by what they are good for."""

    def open(self, now: "datetime | None" = None) -> "InvitationQuerySet":
        """Neither used up, revoked nor expired."""
        now = now or timezone.now()
        return self.filter(revoked_at__isnull=True, expires_at__gt=now, uses__lt=models.F("most_uses"))

    def visible_to(self, user: User) -> "InvitationQuerySet":
        """Those of teams the person manages; staff see all."""
        return self if user.is_staff else self.filter(team__in=Team.objects.manageable_by(user))


class Invitation(models.Model):
    """A link by which somebody joins the portal, and a team. The token is shown once and stored as SHA-256."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    team = models.ForeignKey(
        Team, null=True, blank=True, on_delete=models.CASCADE, related_name="invitations"
    )
    role = models.CharField(max_length=10, choices=Membership.Role, default=Membership.Role.MEMBER)
    email = models.EmailField(blank=True, help_text="Whom it is for; empty: whoever has the link.")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+", editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField()
    most_uses = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])
    uses = models.PositiveSmallIntegerField(default=0, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = InvitationQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"to {self.team or 'the portal'}, until {self.expires_at:%Y-%m-%d}"

    @staticmethod
    def digest_of(token: str) -> str:
        """The stored form of a token."""
        return hashlib.sha256(token.encode()).hexdigest()


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    """Keys, by what they are good for."""

    def usable(self, now: "datetime | None" = None) -> "ApiKeyQuerySet":
        """Neither revoked nor expired, of a person who may still sign in; one of a team while the person is in it."""
        now = now or timezone.now()
        maker = Membership.objects.filter(team=models.OuterRef("team"), user=models.OuterRef("user"))
        return self.filter(
            Q(expires_at__isnull=True) | Q(expires_at__gt=now),
            Q(team__isnull=True) | models.Exists(maker),
            revoked_at__isnull=True,
            user__is_active=True,
        )

    def visible_to(self, user: User) -> "ApiKeyQuerySet":
        """One's own and those of teams one manages; staff see everybody's."""
        if user.is_staff:
            return self
        return self.filter(Q(user=user) | Q(team__in=Team.objects.manageable_by(user)))


def _inference() -> list[str]:
    """What a key may do unless somebody says more: talk to models."""
    return [ApiKey.Scope.INFERENCE]


class ApiKey(models.Model):
    """A program's way in. The key itself is shown once and stored as SHA-256: 256 random bits need no slow hash.

    A key acts as its `user`, within `scopes` and `model_slugs`. One of a `team` may use what the team may use, counts
    against the team's limits, and ends with its maker's membership.
    """

    class Scope(models.TextChoices):
        """What a key opens."""

        INFERENCE = "inference", "Use models: chat, completions, embeddings, rerank"
        READ = "read", "Read through the REST API what its owner may see"
        WRITE = "write", "Change through the REST API what its owner may change"

    class Priority(models.TextChoices):
        """Its class in the queue of a busy model."""

        INTERACTIVE = "interactive", "A person waits for the answer"
        BATCH = "batch", "Nobody waits: after chats and interactive keys"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_keys")
    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=80)
    scopes = ArrayField(models.CharField(max_length=12, choices=Scope), default=_inference)
    model_slugs = ArrayField(
        models.SlugField(max_length=100),
        default=list,
        blank=True,
        help_text="Empty: every model of its owner.",
    )
    priority = models.CharField(max_length=12, choices=Priority, default=Priority.INTERACTIVE)
    prefix = models.CharField(max_length=16, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @staticmethod
    def digest_of(key: str) -> str:
        """The stored form of a key."""
        return hashlib.sha256(key.encode()).hexdigest()


class AuditEntryQuerySet(models.QuerySet["AuditEntry"]):
    """Entries, by who may read them."""

    def visible_to(self, user: User) -> "AuditEntryQuerySet":
        """Those of teams one manages; staff read all."""
        return self if user.is_staff else self.filter(team__in=Team.objects.manageable_by(user))


class AuditEntry(models.Model):
    """Who did what to which thing, when. Never changed, outlives the person and the thing."""

    at = models.DateTimeField(default=timezone.now, db_index=True, editable=False)
    by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+", editable=False)
    by_name = models.CharField(max_length=150, editable=False)
    verb = models.CharField(max_length=60, db_index=True, editable=False)
    target = models.CharField(max_length=200, editable=False)
    detail = models.JSONField(default=dict, editable=False)
    team = models.ForeignKey(
        Team,
        null=True,
        on_delete=models.SET_NULL,
        related_name="audit_entries",
        db_index=False,
        editable=False,
        help_text="Whose managers read it, too.",
    )

    objects = AuditEntryQuerySet.as_manager()

    class Meta:
        ordering = ["-at", "-pk"]
        verbose_name_plural = "audit entries"
        indexes: ClassVar = [
            models.Index(fields=["-at", "-id"], name="audit_newest"),
            models.Index(fields=["by_name", "-at", "-id"], name="audit_by_whom"),
            models.Index(fields=["verb", "-at", "-id"], name="audit_by_verb"),
            models.Index(fields=["team", "-at", "-id"], name="audit_of_team"),
        ]

    def __str__(self) -> str:
        return f"{self.by_name} {self.verb} {self.target}"

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What `detail` says, as names and words. What is empty says nothing."""
        return [
            (name.replace("_", " "), _in_words(value))
            for name, value in self.detail.items()
            if value not in ("", None, [], {})
        ]


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(one)}" for name, one in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
