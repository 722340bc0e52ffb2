"""Short-lived facts that a node tells the pages: the ends of its instances' logs, their slots, how fast they write.

They live in the cache, so every web process on every machine has them; losing them loses nothing.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import astuple
from uuid import UUID

from django.core.cache import cache
from redis import RedisError

from models_admin.engine.slots import Slot

_LOG_S = 3600
_RATE_S = 15
_SLOTS_S = 15


def tell_log(instance_pk: UUID, lines: list[str]) -> bool:
    """Note the last lines. True if they differ from those noted before."""
    # Many lines are rarely new: a digest of those noted is enough to know.
    digest = hashlib.blake2b("\n".join(lines).encode(errors="replace"), digest_size=16).hexdigest()
    try:
        if cache.get(f"instance-log-digest:{instance_pk}") == digest:
            return False
        cache.set(f"instance-log:{instance_pk}", lines, _LOG_S)
        # After the lines and for less long: where there is a digest, there are its lines.
        cache.set(f"instance-log-digest:{instance_pk}", digest, _LOG_S - 60)
    except RedisError:
        return False
    return True


def log_of(instance_pk: UUID) -> list[str]:
    """The last lines noted."""
    try:
        lines: list[str] = cache.get(f"instance-log:{instance_pk}") or []
    except RedisError:
        return []
    return lines


def tell_slots(instance_pk: UUID, slots: Sequence[Slot]) -> bool:
    """Note what the slots do. True if that differs from what was noted before."""
    told = [astuple(slot) for slot in slots]
    try:
        before: list[tuple[int, ...]] | None = cache.get(f"instance-slots:{instance_pk}")
        cache.set(f"instance-slots:{instance_pk}", told, _SLOTS_S)
    except RedisError:
        return False
    return before != told


def slots_of(instance_pk: UUID) -> list[Slot]:
    """The slots as noted lately; none where nothing is known."""
    try:
        told = cache.get(f"instance-slots:{instance_pk}") or []
    except RedisError:
        return []
    return [Slot(*one) for one in told]


def tell_written(instance_pk: UUID, tokens: int, at: float) -> bool:
    """Note that the instance had written `tokens` by `at`. True if its rate has changed by a token a second."""
    try:
        before = cache.get(f"instance-written:{instance_pk}")
        if before and at - before[1] < 1.0:
            return False
        cache.set(f"instance-written:{instance_pk}", (tokens, at), _RATE_S)
        if not before or tokens < before[0]:
            return False
        rate: float = (tokens - before[0]) / (at - before[1])
        shown: float = cache.get(f"instance-rate:{instance_pk}") or 0.0
        cache.set(f"instance-rate:{instance_pk}", rate, _RATE_S)
    except RedisError:
        return False
    return round(rate) != round(shown)


def rate_of(instance_pk: UUID) -> float | None:
    """Tokens per second lately; None where it isn't known."""
    try:
        rate: float | None = cache.get(f"instance-rate:{instance_pk}")
    except RedisError:
        return None
    return rate


def tell_download(download_pk: UUID, rate_bytes: float, waits_for: str) -> None:
    """Note how many bytes a second come, and what keeps them from coming."""
    try:
        cache.set(f"download:{download_pk}", (rate_bytes, waits_for), _RATE_S)
    except RedisError:
        return


def download_of(download_pk: UUID) -> tuple[float | None, str]:
    """Both as noted lately; None where nothing is known."""
    try:
        told: tuple[float, str] | None = cache.get(f"download:{download_pk}")
    except RedisError:
        return None, ""
    return told or (None, "")
