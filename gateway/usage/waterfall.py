"""Where a request's time went, as bars on one line."""

from dataclasses import dataclass

from gateway.models import UsageRecord

# The line's length; the bars are drawn on it.
LINE = 1_000
_LEAST = 6
_STAGES = (
    ("waiting", "queue_ms"),
    ("loading", "load_ms"),
    ("reading", "prefill_ms"),
    ("writing", "decode_ms"),
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One bar; `x` and `width` are thousandths of the line."""

    name: str
    ms: float
    x: int
    width: int


def stages(record: UsageRecord) -> list[Stage]:
    """What the time went into, in order; stages that took none are left out."""
    spent = [(name, float(getattr(record, field))) for name, field in _STAGES]
    whole = max(sum(ms for _, ms in spent), record.total_ms, 1e-3)
    found: list[Stage] = []
    before = 0.0
    for name, ms in spent:
        if ms > 0:
            x = round(before / whole * LINE)
            width = max(round(ms / whole * LINE), _LEAST)
            found.append(Stage(name, ms, min(x, LINE - _LEAST), min(width, LINE - x) or _LEAST))
        before += ms
    return found


def in_words(record: UsageRecord) -> str:
    """The same in a sentence."""
    told = ", ".join(f"{stage.name} {stage.ms:,.0f} ms" for stage in stages(record))
    first = "" if record.first_token_ms is None else f"; first token after {record.first_token_ms:,.0f} ms"
    return f"{told or 'no time spent'}{first}; {record.total_ms:,.0f} ms in all"
