"""How far a model is loaded. llama-server doesn't say, so it is told from memory and from earlier loads."""

import psutil

from models_admin.models import Instance

_ALMOST = 99
_EARLIER = 3


def progress(found: psutil.Process, instance: Instance, age_s: float) -> int:
    """Percent, at most 99: the share of the expected memory it has taken, or of the time earlier loads took.

    The smaller share is the more honest one; weights that are mapped may be there long before they have been read.
    """
    shares = []
    if instance.expected_bytes:
        shares.append(found.memory_info().rss / instance.expected_bytes)
    if earlier := _earlier_s(instance):
        shares.append(age_s / earlier)
    share = min(shares, default=0.0)
    return max(instance.progress or 0, min(_ALMOST, int(share * 100)))


def _earlier_s(instance: Instance) -> float | None:
    """How long the last loads of this model took, on average, on this machine."""
    rows = Instance.objects.filter(
        served=instance.served_id, node=instance.node_id, ready_at__isnull=False
    ).order_by("-ready_at")
    loads = [
        (ready - started).total_seconds()
        for started, ready in rows.values_list("started_at", "ready_at")[:_EARLIER]
        if started and ready and ready > started
    ]
    return sum(loads) / len(loads) if loads else None
