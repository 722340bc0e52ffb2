"""Numbers as a person says them."""

from datetime import datetime, timedelta

from django import template
from django.utils import timezone

register = template.Library()

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_COUNTS = ("", "k", "M", "B", "T")
_AGES = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@register.filter
def as_bytes(count: int | None) -> str:
    """`98.5 MiB`; a dash for what isn't known."""
    return "–" if count is None else _scaled(float(count), 1024, _BYTES)


@register.filter
def as_count(count: int | None) -> str:
    """`135 M` parameters."""
    return "–" if count is None else _scaled(float(count), 1000, _COUNTS)


@register.filter
def age(since: datetime | None) -> str:
    """How long ago, in its largest unit: `3 h`."""
    return "–" if since is None else span(timezone.now() - since)


def span(length: timedelta) -> str:
    """How long, in its largest unit: `3 h`."""
    seconds = max(0, int(length.total_seconds()))
    for size, unit in _AGES:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return "0 s"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    step = 0
    while value >= base and step < len(units) - 1:
        value, step = value / base, step + 1
    digits = 0 if step == 0 or value >= 100 else 1
    return f"{value:.{digits}f} {units[step]}".strip()
