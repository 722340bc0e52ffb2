"""Samples over time, in as many points as a chart can show."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db.models import Avg, DateTimeField, DurationField, F, Func, Value
from django.utils import timezone

from models_admin.models import Node
from monitoring.models import CHARTED, KEPT_FOR, Sample

SAMPLE_EVERY_S = 2
MOST_POINTS = 600
LONGEST_MINUTES = int(KEPT_FOR.total_seconds() // 60)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class History:
    """Equal-length columns. A point whose values are all None is a gap: nothing was measured between its neighbours."""

    step_s: int
    gap_s: int
    at: list[float]
    columns: dict[str, list[float | None]]


def history(node: Node, minutes: int, *, now: datetime | None = None) -> History:
    """The node's last minutes in steps of whole seconds, each the mean of its samples."""
    minutes = min(max(minutes, 1), LONGEST_MINUTES)
    step_s = step_for(minutes * 60)
    steps = math.ceil(minutes * 60 / step_s)
    until = now or timezone.now()
    current_step = until.timestamp() // step_s * step_s
    since = datetime.fromtimestamp(current_step - (steps - 1) * step_s, UTC)
    return between(node, since, until, step_s)


def step_for(seconds: float) -> int:
    """The shortest step in which that long a time fits into a chart."""
    return max(SAMPLE_EVERY_S, math.ceil(seconds / MOST_POINTS))


def between(node: Node, since: datetime, until: datetime, step_s: int) -> History:
    """The node's samples from `since` to `until` in steps of `step_s` seconds, each the mean of its samples."""
    gap_s = step_s * 3 + 1
    rows = (
        Sample.objects.filter(node=node, at__gte=since, at__lte=until)
        .annotate(step=_step("at", step_s))
        .values("step")
        .annotate(**{f"mean_{name}": Avg(name) for name in CHARTED})
        .order_by("step")
        .values_list("step", *(f"mean_{name}" for name in CHARTED))
    )
    at: list[float] = []
    columns: dict[str, list[float | None]] = {name: [] for name in CHARTED}
    for step, *means in rows:
        seconds = step.timestamp()
        if at and seconds - at[-1] > gap_s:
            at.append(at[-1] + step_s)
            for column in columns.values():
                column.append(None)
        at.append(seconds)
        for column, mean in zip(columns.values(), means, strict=True):
            column.append(_rounded(mean))
    return History(step_s, gap_s, at, columns)


def prune_samples(*, now: datetime | None = None) -> int:
    """Delete samples older than they are kept, in batches short enough to disturb nobody. How many went."""
    before = (now or timezone.now()) - KEPT_FOR
    gone = 0
    for node in Node.objects.all():
        while deleted := _delete_batch(node, before):
            gone += deleted
    return gone


def _delete_batch(node: Node, before: datetime) -> int:
    old = Sample.objects.filter(node=node, at__lt=before).order_by("at").values("pk")[:_BATCH]
    return Sample.objects.filter(pk__in=old).delete()[0]


def _step(field: str, seconds: int) -> Func:
    return Func(
        Value(timedelta(seconds=seconds), output_field=DurationField()),
        F(field),
        Value(_EPOCH, output_field=DateTimeField()),
        function="date_bin",
        output_field=DateTimeField(),
    )


def _rounded(mean: float | None) -> float | None:
    return None if mean is None else round(float(mean), 3)
