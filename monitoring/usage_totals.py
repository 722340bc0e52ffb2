"""Requests since the beginning, for Prometheus, whose counters must never go back.

They are counted from the usage records and not in the processes, because a request may be answered by any of several
web and generator processes on several machines, and a scrape reaches one. To keep a scrape cheap, the sums over all
records but the latest live in the cache; only the latest are counted anew. A lost cache costs one pass over all records
and no figure.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from django.core.cache import cache
from django.db import connection
from django.utils import timezone

from monitoring.statistics import BUCKETS_MS

# A record's `at` is set just before it is inserted: after a minute none can appear with an older one.
_SETTLED_AFTER_S = 60
_STEP_S = 600
_KEY = "monitoring:usage-totals"

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the requests of one model, door and finish. `within` counts those no longer than each of BUCKETS_MS."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    within: tuple[int, ...] = (0,) * len(BUCKETS_MS)

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
            tuple(one + two for one, two in zip(self.within, other.within, strict=True)),
        )


def usage_totals(*, now: datetime | None = None) -> dict[Key, Totals]:
    """All requests so far by (model, door, finish)."""
    seconds = ((now or timezone.now()).timestamp() - _SETTLED_AFTER_S) // _STEP_S * _STEP_S
    settled = datetime.fromtimestamp(seconds, UTC)
    known: tuple[datetime, dict[Key, Totals]] | None = cache.get(_KEY)
    until, totals = known or (datetime.min.replace(tzinfo=UTC), {})
    if until < settled:
        totals = _sum(totals, _count(until, settled))
        until = settled
        # Whichever process is last wins; every pair of a time and its sums is right.
        cache.set(_KEY, (until, totals), timeout=None)
    return _sum(totals, _count(until, datetime.max.replace(tzinfo=UTC)))


def _count(since: datetime, until: datetime) -> dict[Key, Totals]:
    with connection.cursor() as cursor:
        cursor.execute(_SQL, {"since": since, "until": until})
        return {
            (model, door, finish): Totals(
                requests, int(prompt), int(completion), total_ms / 1000, tuple(within)
            )
            for model, door, finish, requests, prompt, completion, total_ms, *within in cursor
        }


def _sum(one: dict[Key, Totals], two: dict[Key, Totals]) -> dict[Key, Totals]:
    return {key: one.get(key, Totals()) + two.get(key, Totals()) for key in sorted({*one, *two})}


_BUCKET_COUNTS = ", ".join(f"count(*) FILTER (WHERE total_ms <= {bound})" for bound in BUCKETS_MS)
_SQL = f"""
SELECT model_slug, door, finish, count(*), sum(prompt_tokens), sum(completion_tokens), sum(total_ms), {_BUCKET_COUNTS}
FROM gateway_usagerecord
WHERE at >= %(since)s AND at < %(until)s
GROUP BY model_slug, door, finish
"""  # noqa: S608  (what is put in are the constants above)
