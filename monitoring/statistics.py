"""What the gateway's usage records come to: how many requests, how fast, how many failed.

A window costs at most one pass over its newest `MOST_RECORDS` records, and its figures are kept for a fraction of its
length, so that a hundred open dashboards cost what one does.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.core.cache import cache
from django.db import connection
from django.utils import timezone

from gateway.models import BUCKETS_MS, UsageRecord

MOST_RECORDS = 100_000


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time up to now."""

    slug: str
    label: str
    name: str
    seconds: int


WINDOWS = {
    window.slug: window
    for window in (
        Window("5m", "5 min", "5 minutes", 300),
        Window("1h", "1 h", "hour", 3_600),
        Window("24h", "24 h", "24 hours", 86_400),
    )
}


@dataclass(frozen=True, slots=True)
class Figures:
    """Requests of a window. Times are of those that were answered; None without any."""

    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    per_second: float = 0.0
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    first_token_p50_ms: float | None = None
    first_token_p95_ms: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    distribution: tuple[int, ...] = (0,) * (len(BUCKETS_MS) + 1)

    @property
    def error_rate(self) -> float:
        """The share of requests that failed, 0 to 1."""
        return self.errors / self.requests if self.requests else 0.0

    @property
    def bars(self) -> "list[Bar]":
        """The distribution, without the empty steps at its ends."""
        counts = self.distribution
        filled = [number for number, count in enumerate(counts) if count]
        if not filled:
            return []
        lower, upper = (0, *BUCKETS_MS), (*BUCKETS_MS, None)
        return [
            Bar(lower[number], upper[number], counts[number], counts[number] / sum(counts))
            for number in range(filled[0], filled[-1] + 1)
        ]


@dataclass(frozen=True, slots=True)
class Bar:
    """One step of the distribution of durations. Without `below_ms` it has no upper end."""

    from_ms: int
    below_ms: int | None
    requests: int
    share: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures over all models and of each, keyed by slug. `capped`: only the newest records were looked at."""

    window: Window
    since: datetime
    total: Figures
    models: dict[str, Figures] = field(default_factory=dict)
    capped: bool = False


def statistics(window: Window) -> Statistics:
    """The window's figures, some seconds old, up to a minute for the longest."""
    key = f"monitoring:statistics:{window.slug}"
    known: Statistics | None = cache.get(key)
    if known is None:
        known = compute(window)
        cache.set(key, known, timeout=min(60, max(2, window.seconds // 100)))
    return known


def compute(window: Window, *, now: datetime | None = None, most: int = MOST_RECORDS) -> Statistics:
    """The window's figures now, from at most the newest `most` records."""
    now = now or timezone.now()
    since = now - timedelta(seconds=window.seconds)
    with connection.cursor() as cursor:
        cursor.execute(
            _SQL,
            {
                "since": since,
                "now": now,
                "most": most,
                "buckets": list(BUCKETS_MS),
                "error": UsageRecord.Finish.ERROR.value,
                "cancelled": UsageRecord.Finish.CANCELLED.value,
            },
        )
        names = [column.name for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
    total = next(row for row in rows if row["is_total"])
    capped = total["requests"] >= most
    if capped:
        since = total["oldest"]
    seconds = max((now - since).total_seconds(), 1.0)
    return Statistics(
        window=window,
        since=since,
        total=_figures(total, seconds),
        models={row["model_slug"]: _figures(row, seconds) for row in rows if not row["is_total"]},
        capped=capped,
    )


# GROUPING SETS: each model's figures and everybody's from one pass. `done` are answered requests, the only ones whose
# duration says how fast the portal is: a refusal is quick and an abandoned request as long as somebody's patience.
_BUCKET_COUNTS = ", ".join(
    f"count(*) FILTER (WHERE done AND bucket = {number}) AS bucket_{number}"
    for number in range(len(BUCKETS_MS) + 1)
)
_SQL = f"""
WITH recent AS (
    SELECT model_slug, finish, at, total_ms, first_token_ms, prompt_tokens, completion_tokens,
           width_bucket(total_ms, %(buckets)s::float8[]) AS bucket,
           finish NOT IN (%(error)s, %(cancelled)s) AS done
    FROM gateway_usagerecord
    WHERE at > %(since)s AND at <= %(now)s
    ORDER BY at DESC
    LIMIT %(most)s
)
SELECT model_slug,
       GROUPING(model_slug) = 1 AS is_total,
       count(*) AS requests,
       count(*) FILTER (WHERE finish = %(error)s) AS errors,
       count(*) FILTER (WHERE finish = %(cancelled)s) AS cancelled,
       min(at) AS oldest,
       avg(total_ms) FILTER (WHERE done) AS mean_ms,
       percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY total_ms) FILTER (WHERE done) AS total_pn,
       percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY first_token_ms)
           FILTER (WHERE done AND first_token_ms IS NOT NULL) AS first_pn,
       coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
       coalesce(sum(completion_tokens), 0) AS completion_tokens,
       {_BUCKET_COUNTS}
FROM recent
GROUP BY GROUPING SETS ((model_slug), ())
"""  # noqa: S608  (what is put in are the constants above)


def _figures(row: dict[str, Any], seconds: float) -> Figures:
    p50, p95, p99 = row["total_pn"] or (None, None, None)
    first_p50, first_p95 = row["first_pn"] or (None, None)
    return Figures(
        requests=row["requests"],
        errors=row["errors"],
        cancelled=row["cancelled"],
        per_second=row["requests"] / seconds,
        mean_ms=row["mean_ms"],
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        first_token_p50_ms=first_p50,
        first_token_p95_ms=first_p95,
        prompt_tokens=int(row["prompt_tokens"]),
        completion_tokens=int(row["completion_tokens"]),
        distribution=tuple(row[f"bucket_{number}"] for number in range(len(BUCKETS_MS) + 1)),
    )


def only(figures: dict[str, Figures], slugs: Iterable[str]) -> dict[str, Figures]:
    """The figures of these models, busiest first."""
    wanted = set(slugs)
    chosen = [(slug, each) for slug, each in figures.items() if slug in wanted]
    return dict(sorted(chosen, key=lambda pair: -pair[1].requests))
