"""Numbers as a person says them."""

from django import template

register = template.Library()


@register.filter
def duration(ms: float | None) -> str:
    """Milliseconds as `85 ms`, `1.4 s`, `2 min 5 s`; a dash for none."""
    if ms is None:
        return "–"
    if ms < 1_000:
        return f"{ms:.0f} ms"
    if ms < 9_950:
        return f"{ms / 1_000:.1f}".removesuffix(".0") + " s"
    seconds = round(ms / 1_000)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"


@register.filter
def share(ratio: float) -> str:
    """A ratio of 0 to 1 as `0 %`, `0.4 %`, `12 %`."""
    percent = ratio * 100
    if percent and percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if 0 < percent < 10 else f"{percent:.0f} %"


@register.filter
def rate(per_second: float) -> str:
    """How often, in the unit that gives a number to read: `2.3 /s`, `14 /min`, `3 /h`."""
    for factor, unit in ((1, "s"), (60, "min"), (3_600, "h")):
        if per_second * factor >= 1:
            return f"{per_second * factor:.3g} /{unit}"
    return f"{per_second * 3_600:.1g} /h" if per_second else "0 /s"
