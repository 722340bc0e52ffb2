"""What was used: one record a request, and their sums by hour and by day."""

import uuid
from typing import ClassVar, Self, TypeVar

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone

from accounts.models import ApiKey, Membership, Team, User
from models_admin.models import Instance, ServedModel

# Upper bounds in ms by which durations are counted, evenly spaced on a logarithmic scale (three a decade).
BUCKETS_MS = (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


def _visible_to(user: User) -> models.Q:
    """One's own, and that of teams one manages."""
    managed = Team.objects.filter(memberships__user=user, memberships__role__in=Membership.MANAGING)
    return models.Q(user=user) | models.Q(team__in=managed)


class UsageQuerySet(models.QuerySet["UsageRecord"]):
    """Records, by who may see them."""

    def visible_to(self, user: User) -> "UsageQuerySet":
        """One's own and those of teams one manages; staff see everybody's."""
        return self if user.is_staff else self.filter(_visible_to(user))


class UsageRecord(models.Model):
    """One request through the gateway, from admission to its end. Times are milliseconds from its arrival's parts."""

    class Door(models.TextChoices):
        CHAT = "chat"
        API = "api"

    class Finish(models.TextChoices):
        STOP = "stop"
        LENGTH = "length"
        TOOL_CALLS = "tool_calls"
        CANCELLED = "cancelled"
        ERROR = "error"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    at = models.DateTimeField(default=timezone.now, db_index=True)
    user = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="usage")
    team = models.ForeignKey(
        Team,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="usage",
        help_text="Of a team's key.",
    )
    api_key = models.ForeignKey(
        ApiKey, null=True, blank=True, on_delete=models.SET_NULL, related_name="usage"
    )
    served = models.ForeignKey(ServedModel, null=True, on_delete=models.SET_NULL, related_name="usage")
    instance = models.ForeignKey(Instance, null=True, on_delete=models.SET_NULL, related_name="usage")
    model_slug = models.CharField(max_length=100)
    endpoint = models.CharField(max_length=40, default="chat/completions")
    request_id = models.CharField(max_length=64, blank=True)
    door = models.CharField(max_length=4, choices=Door)
    finish = models.CharField(max_length=10, choices=Finish)
    error_code = models.CharField(max_length=40, blank=True)
    status = models.PositiveSmallIntegerField(default=200)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    queue_ms = models.FloatField(default=0)
    load_ms = models.FloatField(default=0)
    prefill_ms = models.FloatField(default=0)
    first_token_ms = models.FloatField(null=True)
    decode_ms = models.FloatField(default=0)
    total_ms = models.FloatField(default=0)

    objects = UsageQuerySet.as_manager()

    class Meta:
        ordering = ["-at"]
        indexes: ClassVar = [
            models.Index(fields=["user", "-at"]),
            models.Index(fields=["served", "-at"]),
            models.Index(fields=["api_key", "-at"]),
            models.Index(fields=["team", "-at"]),
        ]

    def __str__(self) -> str:
        return f"{self.model_slug} {self.at:%Y-%m-%d %H:%M:%S}"


# What is summed up of records, by the names of the columns that hold the sums.
SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "queue_ms", "total_ms")

SumsT = TypeVar("SumsT", bound="_Sums")


class SumsQuerySet(models.QuerySet[SumsT]):
    """Sums, by who may see them."""

    def visible_to(self, user: User) -> Self:
        """One's own and those of teams one manages; staff see everybody's."""
        return self if user.is_staff else self.filter(_visible_to(user))


class _Sums(models.Model):
    """The sums of some records of one person, key, model and door.

    They outlive the records, and whom they name: no constraint ties them to a person or key that is deleted.
    """

    user = models.ForeignKey(
        User, null=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+"
    )
    team = models.ForeignKey(
        Team, null=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+"
    )
    api_key = models.ForeignKey(
        ApiKey, null=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+"
    )
    model_slug = models.CharField(max_length=100)
    door = models.CharField(max_length=4, choices=UsageRecord.Door)
    requests = models.PositiveIntegerField(default=0)
    errors = models.PositiveIntegerField(default=0)
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0)
    queue_ms = models.FloatField(default=0)
    total_ms = models.FloatField(default=0)

    class Meta:
        abstract = True


def _looked_up_by(begins: str) -> list[models.Index]:
    """How sums are found, by the column that says when they begin."""
    return [models.Index(fields=[whose, begins]) for whose in ("user", "team")]


def _one_each(begins: str, name: str) -> list[models.BaseConstraint]:
    """One row for what goes together."""
    fields = [begins, "user", "team", "api_key", "model_slug", "door"]
    return [models.UniqueConstraint(fields=fields, nulls_distinct=False, name=name)]


class UsageHour(_Sums):
    """The sums of one hour."""

    hour = models.DateTimeField(help_text="When it begins.")

    objects = SumsQuerySet["UsageHour"].as_manager()

    class Meta:
        ordering: ClassVar = ["-hour"]
        indexes: ClassVar = _looked_up_by("hour")
        constraints: ClassVar = _one_each("hour", "one_sum_an_hour")

    def __str__(self) -> str:
        return f"{self.model_slug} {self.hour:%Y-%m-%d %H}h"


class UsageDay(_Sums):
    """The sums of one day's hours, so that a year costs no more than its days."""

    day = models.DateTimeField(help_text="When it begins, at midnight UTC.")

    objects = SumsQuerySet["UsageDay"].as_manager()

    class Meta:
        ordering: ClassVar = ["-day"]
        indexes: ClassVar = _looked_up_by("day")
        constraints: ClassVar = _one_each("day", "one_sum_a_day")

    def __str__(self) -> str:
        return f"{self.model_slug} {self.day:%Y-%m-%d}"


class UsageTotal(models.Model):
    """All requests ever of one model, door and finish, for counters that must never go back."""

    model_slug = models.CharField(max_length=100)
    door = models.CharField(max_length=4, choices=UsageRecord.Door)
    finish = models.CharField(max_length=10, choices=UsageRecord.Finish)
    requests = models.PositiveBigIntegerField(default=0)
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    total_ms = models.FloatField(default=0)
    within = ArrayField(
        models.PositiveBigIntegerField(),
        size=len(BUCKETS_MS),
        help_text="Requests no longer than each of BUCKETS_MS.",
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["model_slug", "door", "finish"], name="one_total_each")
        ]

    def __str__(self) -> str:
        return f"{self.model_slug} {self.door} {self.finish}"


class Price(models.Model):
    """What a model's tokens are said to cost, for show-back."""

    served = models.OneToOneField(ServedModel, on_delete=models.CASCADE, related_name="price")
    prompt_per_million = models.DecimalField(
        max_digits=12, decimal_places=4, default=0, validators=[MinValueValidator(0)]
    )
    completion_per_million = models.DecimalField(
        max_digits=12, decimal_places=4, default=0, validators=[MinValueValidator(0)]
    )

    def __str__(self) -> str:
        return f"{self.served}: {self.prompt_per_million} / {self.completion_per_million} a million"


class UsageConfig(models.Model):
    """The portal's own settings of usage: one row."""

    retention_days = models.PositiveIntegerField(
        default=90,
        validators=[MinValueValidator(1), MaxValueValidator(3_660)],
        help_text="After so many days single records go; their sums stay.",
    )
    currency = models.CharField(max_length=8, default="EUR")

    class Meta:
        verbose_name = verbose_name_plural = "usage settings"
        constraints: ClassVar = [models.CheckConstraint(condition=models.Q(pk=1), name="one_usage_config")]

    def __str__(self) -> str:
        return "usage settings"

    @classmethod
    def current(cls) -> "UsageConfig":
        """The row, or what holds before anybody has written one."""
        return cls.objects.first() or cls(pk=1)
