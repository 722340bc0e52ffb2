"""Durations as a person says them, and the stages of an answer for its waterfall."""

from dataclasses import dataclass

from django import template

from chat.models import Message
from gateway.templatetags.usage import in_time

register = template.Library()

_STAGES = (
    ("queue_ms", "waiting"),
    ("load_ms", "loading"),
    ("prefill_ms", "reading"),
    ("decode_ms", "writing"),
)
# The waterfall's bars are drawn on a line this long.
_LINE = 1000


@register.filter
def seconds(ms: float | None) -> str:
    """Milliseconds as `410 ms`, `5.9 s` or `2 min 5 s`; nothing for None."""
    return "" if ms is None else in_time(ms)


@dataclass(frozen=True)
class Stage:
    """One bar of the waterfall; `x` and `width` are thousandths of the line."""

    name: str
    ms: float
    x: int
    width: int


@register.filter
def stages(message: Message) -> list[Stage]:
    """What the answer's time went into, in order; stages that took no time are left out."""
    spent = [(name, float(message.timings.get(key) or 0)) for key, name in _STAGES]
    total = max(sum(ms for _, ms in spent), float(message.timings.get("total_ms") or 0))
    found: list[Stage] = []
    before = 0.0
    for name, ms in spent:
        if ms > 0:
            x = round(before / total * _LINE)
            found.append(Stage(name, ms, x, max(round(ms / total * _LINE), 4)))
        before += ms
    return found
