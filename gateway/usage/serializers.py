"""Use, prices and settings, as REST has them."""

from typing import Any

from rest_framework import serializers

from gateway.models import Price, UsageConfig, UsageRecord
from llamaproj.rest import Strict

GROUPS = ("hour", "day", "month", "model", "key", "user", "team", "door")


class RecordSerializer(serializers.ModelSerializer[UsageRecord]):
    """One request. Times are in milliseconds; `at` is its end."""

    user = serializers.SlugRelatedField[Any](slug_field="username", read_only=True, allow_null=True)
    team = serializers.SlugRelatedField[Any](
        slug_field="name", read_only=True, allow_null=True, help_text="The key's."
    )
    key = serializers.UUIDField(source="api_key_id", read_only=True, allow_null=True)
    key_name = serializers.CharField(source="api_key.name", read_only=True, default=None, allow_null=True)
    model = serializers.CharField(source="model_slug", read_only=True)

    class Meta:
        model = UsageRecord
        fields = (
            "id", "at", "user", "team", "key", "key_name", "model", "instance", "endpoint", "request_id", "door",
            "finish", "error_code", "status", "prompt_tokens", "completion_tokens", "cached_tokens", "queue_ms",
            "load_ms", "prefill_ms", "first_token_ms", "decode_ms", "total_ms",
        )  # fmt: skip
        read_only_fields = fields


class SumSerializer(serializers.Serializer[Any]):
    """What a group of requests comes to. What it isn't grouped by is null."""

    at = serializers.DateTimeField(allow_null=True, help_text="When the hour, day or month (of UTC) begins.")
    model = serializers.CharField(allow_null=True)
    key = serializers.UUIDField(allow_null=True, help_text="Null also for chats.")
    key_name = serializers.CharField(allow_null=True, help_text="Null also for a deleted key.")
    user = serializers.CharField(allow_null=True)
    team = serializers.CharField(allow_null=True)
    door = serializers.ChoiceField(choices=UsageRecord.Door.choices, allow_null=True)
    requests = serializers.IntegerField()
    errors = serializers.IntegerField()  # type: ignore[assignment]  # a field; the class's own stays what it is
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    mean_queue_ms = serializers.FloatField()
    mean_ms = serializers.FloatField()
    cost = serializers.DecimalField(
        max_digits=30, decimal_places=6, allow_null=True, help_text="At today's prices; null without any."
    )
    currency = serializers.CharField()


class PriceSerializer(Strict, serializers.ModelSerializer[Price]):
    """What a million of a model's tokens cost, for show-back."""

    model = serializers.SlugRelatedField[Any](slug_field="slug", source="served", read_only=True)

    class Meta:
        model = Price
        fields = ("model", "prompt_per_million", "completion_per_million")
        extra_kwargs = {
            "prompt_per_million": {"required": True},
            "completion_per_million": {"required": True},
        }


class UsageConfigSerializer(Strict, serializers.ModelSerializer[UsageConfig]):
    """How long single requests are kept, and the currency of prices."""

    class Meta:
        model = UsageConfig
        fields = ("retention_days", "currency")
