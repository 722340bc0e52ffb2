"""Figures over time, as REST has them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone
from rest_framework import serializers

from models_admin.models import Node
from monitoring import history
from monitoring.models import KEPT_FOR
from monitoring.statistics import WINDOWS

_USUAL = timedelta(minutes=10)
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_MOST_POINTS = 5_000


class AskedMetricsSerializer(serializers.Serializer[Any]):
    """Of which machine, from when to when, in which steps."""

    node = serializers.SlugRelatedField(
        slug_field="name",
        queryset=Node.objects.all(),
        required=False,
        help_text="The machine's name; else the one seen last.",
    )
    start = serializers.DateTimeField(required=False, help_text="Else ten minutes before the end.")
    end = serializers.DateTimeField(required=False, help_text="Else now.")
    step_seconds = serializers.IntegerField(
        required=False,
        min_value=history.SAMPLE_EVERY_S,
        max_value=86_400,
        help_text="Each value is the mean of so many seconds; else what makes some 600 of them.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Fill in what isn't said. Raises `ValidationError`."""
        end = max(attrs.get("end") or timezone.now(), _EARLIEST)
        start = attrs.get("start") or end - _USUAL
        if start >= end:
            raise serializers.ValidationError({"start": "This lies before the end."})
        # What is older has been removed.
        start = max(start, min(end, timezone.now() - KEPT_FOR))
        seconds = (end - start).total_seconds()
        step = attrs.get("step_seconds") or history.step_for(seconds)
        if seconds / step > _MOST_POINTS:
            raise serializers.ValidationError(
                {"step_seconds": f"This makes more than {_MOST_POINTS:,} steps."}
            )
        return {**attrs, "start": start, "end": end, "step_seconds": step}


class MetricsSerializer(serializers.Serializer[Any]):
    """Samples in columns of equal length. Where all are null, nothing was measured."""

    node = serializers.CharField()
    start = serializers.DateTimeField()
    end = serializers.DateTimeField()
    step_seconds = serializers.IntegerField()
    at = serializers.ListField(
        child=serializers.FloatField(), help_text="When each step began, in seconds since 1970."
    )
    columns = serializers.DictField(
        child=serializers.ListField(child=serializers.FloatField(allow_null=True)),
        help_text="By the name of what was measured; percent, bytes, bytes or tokens a second.",
    )


class AskedStatisticsSerializer(serializers.Serializer[Any]):
    """Over which time up to now."""

    window = serializers.ChoiceField(choices=[*WINDOWS], default="5m")


class BarSerializer(serializers.Serializer[Any]):
    """A step of the distribution of durations."""

    from_ms = serializers.IntegerField()
    below_ms = serializers.IntegerField(allow_null=True, help_text="Null: without an end.")
    requests = serializers.IntegerField()
    share = serializers.FloatField(help_text="0 to 1.")


class FiguresSerializer(serializers.Serializer[Any]):
    """Requests. Times are of those that were answered; null without any."""

    requests = serializers.IntegerField()
    errors = serializers.IntegerField()  # type: ignore[assignment]  # a field; the class's own stays what it is
    cancelled = serializers.IntegerField()
    error_rate = serializers.FloatField(help_text="0 to 1.")
    per_second = serializers.FloatField()
    mean_ms = serializers.FloatField(allow_null=True)
    p50_ms = serializers.FloatField(allow_null=True)
    p95_ms = serializers.FloatField(allow_null=True)
    p99_ms = serializers.FloatField(allow_null=True)
    first_token_p50_ms = serializers.FloatField(allow_null=True)
    first_token_p95_ms = serializers.FloatField(allow_null=True)
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    distribution = BarSerializer(source="bars", many=True)


class StatisticsSerializer(serializers.Serializer[Any]):
    """What requests of a time came to."""

    window = serializers.CharField(source="window.slug")
    since = serializers.DateTimeField()
    capped = serializers.BooleanField(help_text="Whether only the newest requests were looked at.")
    total = FiguresSerializer()
    models = serializers.DictField(child=FiguresSerializer(), help_text="By short name, the busiest first.")


class InstanceMetricsSerializer(serializers.Serializer[Any]):
    """What a replica was last seen doing; null for what nobody knows."""

    at = serializers.DateTimeField()
    cpu_percent = serializers.FloatField(allow_null=True)
    memory_bytes = serializers.IntegerField(allow_null=True)
    gpu_memory_bytes = serializers.IntegerField(allow_null=True)
    threads = serializers.IntegerField(allow_null=True)
    prompt_tokens_s = serializers.FloatField(allow_null=True)
    generated_tokens_s = serializers.FloatField(allow_null=True)
    requests_processing = serializers.FloatField(allow_null=True)
    requests_deferred = serializers.FloatField(allow_null=True)
    slots = serializers.IntegerField(allow_null=True)
    slots_busy = serializers.IntegerField(allow_null=True)
    context_tokens = serializers.IntegerField(allow_null=True)
    context_used_tokens = serializers.IntegerField(allow_null=True)
