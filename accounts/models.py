"""People, teams, API keys and the audit trail."""

import hashlib
import uuid
from typing import TYPE_CHECKING, ClassVar

from django.contrib.auth.models import AbstractUser
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


class Team(models.Model):
    """People who share access to models."""

    name = models.CharField(max_length=80, unique=True)
    members = models.ManyToManyField(User, through="Membership", related_name="teams")

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

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.MEMBER)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["team", "user"], name="one_membership_per_team")
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.team}"


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    """Keys, by what they are good for."""

    def usable(self, now: "datetime | None" = None) -> "ApiKeyQuerySet":
        """Neither revoked nor expired, of a person who may still sign in."""
        now = now or timezone.now()
        return self.filter(
            Q(expires_at__isnull=True) | Q(expires_at__gt=now), revoked_at__isnull=True, user__is_active=True
        )

    def visible_to(self, user: User) -> "ApiKeyQuerySet":
        """One's own; staff see everybody's."""
        return self if user.is_staff else self.filter(user=user)


class ApiKey(models.Model):
    """A program's way in. The key itself is shown once and stored as SHA-256: 256 random bits need no slow hash."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=80)
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


class AuditEntry(models.Model):
    """Who did what to which thing, when. Never changed, outlives the person and the thing."""

    at = models.DateTimeField(default=timezone.now, db_index=True, editable=False)
    by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+", editable=False)
    by_name = models.CharField(max_length=150, editable=False)
    verb = models.CharField(max_length=60, db_index=True, editable=False)
    target = models.CharField(max_length=200, editable=False)
    detail = models.JSONField(default=dict, editable=False)

    class Meta:
        ordering = ["-at"]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.by_name} {self.verb} {self.target}"
