"""Estimates of memory, corrected by what was seen. Pure.

Seen is what a replica took while it worked: everything but what only a full context touches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression, median

from models_admin.memory.memory_estimate import MemoryEstimate

# Two launches of one kind differ by so much: threads, allocators, what people ask.
_MARGIN = 1.02
# A slope is believed when this many launches, of sizes this far apart, were seen; and within these bounds.
_LEAST_SIGHTS = 3
_LEAST_SPREAD = 1.5
_SLOPES = (0.5, 2.0)
# Whatever was seen elsewhere, a launch that nobody saw takes no less and no more than these shares of its estimate.
_SHARES = (0.5, 2.0)


@dataclass(frozen=True)
class Sight:
    """What a launch (`key`: see `LaunchConfig.memory_key`) was estimated at, but for what only a full context
    touches, and what it took."""

    key: str
    estimated_bytes: int
    measured_bytes: int


def corrected(memory: MemoryEstimate, key: str, sights: Sequence[Sight]) -> int:
    """The bytes that a launch will take when its contexts are full; `sights` are those of the same content.

    The same launch was seen: that, and nothing else. Others were: they tell by how much estimates of this content
    are wrong. None was: the estimate.
    """
    same = next((sight for sight in sights if sight.key == key), None)
    if same is not None:
        # Whether its contexts were full when it was seen nobody knows; the estimate bounds what is still to come.
        filled = min(same.measured_bytes + memory.only_when_full, memory.total)
        return max(int(same.measured_bytes * _MARGIN), filled)
    if not sights:
        return memory.total
    return _learned(memory.total - memory.only_when_full, sights) + memory.only_when_full


def _learned(estimated: int, sights: Sequence[Sight]) -> int:
    guesses = [sight.estimated_bytes for sight in sights]
    slope = 1.0
    if len(set(guesses)) >= _LEAST_SIGHTS and max(guesses) >= _LEAST_SPREAD * min(guesses):
        fitted = linear_regression(guesses, [sight.measured_bytes for sight in sights]).slope
        slope = min(max(fitted, _SLOPES[0]), _SLOPES[1])
    # What is left beside the slope is the same for all, and one odd sight doesn't change it.
    offset = median(sight.measured_bytes - slope * sight.estimated_bytes for sight in sights)
    least, most = (share * estimated for share in _SHARES)
    return int(min(max(slope * estimated + offset, least), most))
