"""A report as the columns that the page's charts draw."""

from collections.abc import Callable
from typing import Any

from gateway.usage.report import Report, Sums

# As many as there are colours; the rest is summed up under a name that no model can have.
_MOST_MODELS = 4
OTHERS = "other models"


def columns(report: Report) -> dict[str, Any]:
    """`at` and `until` in epoch seconds, and stacks of named columns, one number a step."""
    steps = report.period.steps
    places = {at: place for place, at in enumerate(steps)}

    def column(value: Callable[[Sums], int], models: set[str] | None = None) -> list[int]:
        found = [0] * len(steps)
        for (at, model), sums in report.by_step.items():
            if models is None or model in models:
                found[places[at]] += value(sums)
        return found

    slugs = [line.key for line in report.models if line.sums.tokens]
    shown = slugs if len(slugs) <= _MOST_MODELS + 1 else slugs[:_MOST_MODELS]
    by_model = [(slug, column(lambda sums: sums.tokens, {slug})) for slug in shown]
    if rest := set(slugs) - set(shown):
        by_model.append((OTHERS, column(lambda sums: sums.tokens, rest)))
    return {
        "at": [int(at.timestamp()) for at in steps],
        "until": int(report.period.until.timestamp()),
        "step": report.period.step.value,
        "stacks": {
            "kind": [
                ("read", column(lambda sums: sums.prompt_tokens)),
                ("written", column(lambda sums: sums.completion_tokens)),
            ],
            "model": by_model,
            "requests": [
                ("answered", column(lambda sums: sums.requests - sums.errors)),
                ("failed", column(lambda sums: sums.errors)),
            ],
        },
    }
