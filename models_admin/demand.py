"""Who asks for what: the few facts about use that processes and machines tell each other, in Valkey.

Requests that wait for a model say so (`ask`), again and again while they wait; so do those that wait for a slot
(`wait`). Nodes report what each replica is doing
(`report`). The scheduler reads both. Losing them loses nothing: they are said again within seconds.
"""

from dataclasses import dataclass
from uuid import UUID

from django.core.cache import cache
from redis import RedisError

# Longer than the pause between two asks, shorter than a load that nobody wants any more should last.
_ASKED_S = 8
_REPORT_S = 15
_WAITING_S = 3
_SINCE_S = 600


@dataclass(frozen=True)
class Report:
    """What a replica is doing: slots in all, slots at work, requests that wait for one."""

    slots: int
    busy: int
    queued: int


def ask(served_pk: int) -> None:
    """Somebody waits for the model."""
    try:
        cache.set(f"asked:{served_pk}", 1, _ASKED_S)
    except RedisError:
        return


def is_asked(served_pk: int) -> bool:
    """True while somebody waits for the model."""
    try:
        return bool(cache.get(f"asked:{served_pk}"))
    except RedisError:
        return False


def wait(served_pk: int, requests: int) -> None:
    """So many requests wait for a slot of the model; said again every second while they do."""
    try:
        cache.set(f"waiting:{served_pk}", requests, _WAITING_S)
    except RedisError:
        return


def waiting_for(served_pk: int) -> int:
    """How many requests wait for a slot of the model."""
    try:
        return int(cache.get(f"waiting:{served_pk}") or 0)
    except RedisError:
        return 0


def report(instance_pk: UUID, now: Report) -> None:
    """Note what the replica is doing."""
    try:
        cache.set(f"load:{instance_pk}", (now.slots, now.busy, now.queued), _REPORT_S)
    except RedisError:
        return


def report_of(instance_pk: UUID) -> Report | None:
    """What the replica was last doing; None where nobody knows."""
    try:
        found = cache.get(f"load:{instance_pk}")
    except RedisError:
        return None
    return Report(*found) if found else None


def has_done_more(instance_pk: UUID, tokens: int) -> bool:
    """Note the tokens a replica has read and written since it started. True if they are more than noted before."""
    try:
        before = cache.get(f"done:{instance_pk}")
        if before != tokens:
            cache.set(f"done:{instance_pk}", tokens, _SINCE_S)
    except RedisError:
        return False
    return before is not None and tokens > before


def held_for(key: str, holds: bool, now: float) -> float:
    """For how many seconds the condition named `key` has held without a break, as far as anybody remembers."""
    try:
        if not holds:
            cache.delete(f"since:{key}")
            return 0.0
        since = cache.get(f"since:{key}")
        cache.set(f"since:{key}", now if since is None else since, _SINCE_S)
    except RedisError:
        return 0.0
    return 0.0 if since is None else max(0.0, now - since)
