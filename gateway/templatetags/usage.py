"""Amounts of use as a person says them, and where a request's time went, as bars on one line."""

from dataclasses import dataclass
from decimal import Decimal

from django import template

from gateway.models import UsageRecord

register = template.Library()

# The line's length; the bars are drawn on it.
_LINE = 1_000
_LEAST = 6
_STAGES = (
    ("waiting", "queue_ms"),
    ("loading", "load_ms"),
    ("reading", "prefill_ms"),
    ("writing", "decode_ms"),
)
_THOUSANDS = ("", "k", "M", "B", "T")
_CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Stage:
    """One bar; `x` and `width` are thousandths of the line."""

    name: str
    ms: float
    x: int
    width: int


@register.filter
def stages(record: UsageRecord) -> list[Stage]:
    """What the request's time went into, in order; stages that took none are left out."""
    spent = [(name, float(getattr(record, field))) for name, field in _STAGES]
    whole = max(sum(ms for _, ms in spent), record.total_ms, 1e-3)
    found: list[Stage] = []
    before = 0.0
    for name, ms in spent:
        if ms > 0:
            x = min(round(before / whole * _LINE), _LINE - _LEAST)
            found.append(Stage(name, ms, x, min(max(round(ms / whole * _LINE), _LEAST), _LINE - x)))
        before += ms
    return found


@register.filter
def stages_in_words(record: UsageRecord) -> str:
    """The same in a sentence."""
    told = [f"{stage.name} {in_time(stage.ms)}" for stage in stages(record)]
    if record.first_token_ms is not None:
        told.append(f"first token after {in_time(record.first_token_ms)}")
    return ", ".join([*told, f"{in_time(record.total_ms)} in all"])


@register.filter
def in_time(ms: float | None) -> str:
    """Milliseconds as `85 ms`, `1.4 s`, `2 min 5 s`; a dash for none."""
    if ms is None:
        return "–"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < 59_950:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"


@register.filter
def in_short(count: int) -> str:
    """`1,234`, `12.3 k`, `4.56 M`: three or four digits."""
    if count < 10_000:
        return f"{count:,}"
    value, step = float(count), 0
    while value >= 999.5 and step < len(_THOUSANDS) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_THOUSANDS[step]}"


@register.filter
def in_percent(ratio: float) -> str:
    """A ratio of 0 to 1 as `0 %`, `0.4 %`, `12 %`."""
    percent = ratio * 100
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"


@register.filter
def in_money(amount: Decimal | None) -> str:
    """`0.42`; a dash for none, and never nothing for something."""
    if amount is None:
        return "–"
    if 0 < amount < _CENT:
        return "< 0.01"
    return f"{amount:,.2f}"
