"""Requests since the beginning, for Prometheus, whose counters must never go back.

They are counted in the database and not in the processes, because a request may be answered by any of several web and
generator processes on several machines, and a scrape reaches one. The gateway keeps the sums with the records; they
outlive them, so a scrape reads a few rows and retention takes nothing away.
"""

from dataclasses import dataclass

from gateway.models import BUCKETS_MS, UsageTotal

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


def usage_totals() -> dict[Key, Totals]:
    """All requests so far by (model, door, finish)."""
    return {
        (row.model_slug, row.door, row.finish): Totals(
            row.requests, row.prompt_tokens, row.completion_tokens, row.total_ms / 1000, tuple(row.within)
        )
        for row in UsageTotal.objects.order_by("model_slug", "door", "finish")
    }
