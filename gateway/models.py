"""What was used: one record a request."""

import uuid
from typing import ClassVar

from django.db import models
from django.utils import timezone

from accounts.models import ApiKey, User
from models_admin.models import Instance, ServedModel


class UsageQuerySet(models.QuerySet["UsageRecord"]):
    """Records, by who may see them."""

    def visible_to(self, user: User) -> "UsageQuerySet":
        """One's own; staff see everybody's."""
        return self if user.is_staff else self.filter(user=user)


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
    api_key = models.ForeignKey(
        ApiKey, null=True, blank=True, on_delete=models.SET_NULL, related_name="usage"
    )
    served = models.ForeignKey(ServedModel, null=True, on_delete=models.SET_NULL, related_name="usage")
    instance = models.ForeignKey(Instance, null=True, on_delete=models.SET_NULL, related_name="usage")
    model_slug = models.CharField(max_length=100)
    door = models.CharField(max_length=4, choices=Door)
    finish = models.CharField(max_length=10, choices=Finish)
    error_code = models.CharField(max_length=40, blank=True)
    status = models.PositiveSmallIntegerField(default=200)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    queue_ms = models.FloatField(default=0)
    prefill_ms = models.FloatField(default=0)
    first_token_ms = models.FloatField(null=True)
    decode_ms = models.FloatField(default=0)
    total_ms = models.FloatField(default=0)

    objects = UsageQuerySet.as_manager()

    class Meta:
        ordering = ["-at"]
        indexes: ClassVar = [models.Index(fields=["user", "-at"]), models.Index(fields=["served", "-at"])]

    def __str__(self) -> str:
        return f"{self.model_slug} {self.at:%Y-%m-%d %H:%M:%S}"
