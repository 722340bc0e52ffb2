"""Single records go after a while; their sums stay."""

from datetime import datetime, timedelta

from django.utils import timezone

from gateway.models import UsageConfig, UsageRecord

_BATCH = 5_000


def prune(*, now: datetime | None = None) -> int:
    """Delete what is older than the portal keeps it, in batches short enough to disturb nobody. How many went."""
    before = (now or timezone.now()) - timedelta(days=UsageConfig.current().retention_days)
    gone = 0
    while batch := _delete_batch(before):
        gone += batch
    return gone


def _delete_batch(before: datetime) -> int:
    old = UsageRecord.objects.filter(at__lt=before).order_by("at").values("pk")[:_BATCH]
    return UsageRecord.objects.filter(pk__in=old).delete()[0]
