"""Where a replica goes, and who has to leave for it. Pure: what is free and who is idle is told.

decision = choose(Need(ram_bytes), rooms)
decision.node, decision.evict, decision.reason
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

TenantId: TypeAlias = UUID | str

# A sentence that lists twenty machines is read by nobody.
_MAX_NAMED = 4


@dataclass(frozen=True)
class Need:
    """Memory by kind, in bytes: asked for, held, or free (then negative where too much is promised)."""

    ram_bytes: int
    vram_bytes: int = 0

    def __add__(self, other: "Need") -> "Need":
        return Need(self.ram_bytes + other.ram_bytes, self.vram_bytes + other.vram_bytes)

    def __sub__(self, other: "Need") -> "Need":
        return Need(self.ram_bytes - other.ram_bytes, self.vram_bytes - other.vram_bytes)

    def fits(self, free: "Need") -> bool:
        """True where so much is free. Who asks for none of a kind doesn't care how much of it there is."""
        return all(
            asked <= 0 or asked <= there for asked, there in zip(self._kinds, free._kinds, strict=True)
        )

    @property
    def _kinds(self) -> tuple[int, int]:
        return self.ram_bytes, self.vram_bytes


@dataclass(frozen=True)
class Tenant:
    """A replica on a node. `evictable` is its caller's word that it may go; a busy one (`idle_s` None) stays anyway."""

    id: TenantId
    name: str
    held: Need
    idle_s: float | None
    evictable: bool


@dataclass(frozen=True)
class Room:
    """A node that may take the replica: what is free there after reserve, promises and limits, and who lives there."""

    node: str
    free: Need
    total: Need
    tenants: tuple[Tenant, ...] = ()
    replicas_of_model: int = 0


@dataclass(frozen=True)
class Decision:
    """The node to place it on, after unloading `evict`; or no node. `reason` says why, in a sentence."""

    node: str | None
    evict: tuple[TenantId, ...] = ()
    reason: str = ""


def choose(need: Need, rooms: Sequence[Room]) -> Decision:
    """The best room for it.

    Where it fits as things are: replicas of one model are spread, then the roomiest node wins. Else where the fewest
    idle replicas, and those idle for longest, have to leave.
    """
    fitting = [room for room in rooms if need.fits(room.free)]
    if fitting:
        best = min(fitting, key=lambda room: _roominess(need, room))
        return Decision(best.node, reason=f"It fits on {best.node}.")
    plans = [(room, plan) for room in rooms if (plan := _plan(need, room))]
    if plans:
        room, plan = min(plans, key=lambda one: _cost(*one))
        return Decision(
            room.node,
            tuple(tenant.id for tenant in plan),
            f"It fits on {room.node} once {_names(plan)} {_is_or_are(plan)} unloaded.",
        )
    return Decision(None, reason=_why_nowhere(need, rooms))


def _roominess(need: Need, room: Room) -> tuple[int, int, int, str]:
    left = room.free - need
    return room.replicas_of_model, -left.vram_bytes if need.vram_bytes > 0 else 0, -left.ram_bytes, room.node


def _plan(need: Need, room: Room) -> list[Tenant]:
    """Who has to leave, idle for longest first; nobody where even all of them together are too little."""
    free, leaving = room.free, list[Tenant]()
    for tenant in _evictable(room):
        if need.fits(free):
            break
        leaving.append(tenant)
        free += tenant.held
    if not need.fits(free):
        return []
    # A large one that came late may have made small ones before it needless.
    for tenant in reversed(leaving.copy()):
        if need.fits(free - tenant.held):
            leaving.remove(tenant)
            free -= tenant.held
    return leaving


def _evictable(room: Room) -> list[Tenant]:
    """Who may leave, idle for longest first."""
    may = [(one.idle_s, str(one.id), one) for one in room.tenants if one.evictable and one.idle_s is not None]
    return [tenant for _, _, tenant in sorted(may, key=lambda entry: (-entry[0], entry[1]))]


def _cost(room: Room, plan: Sequence[Tenant]) -> tuple[int, float, int, str]:
    shortest_idle = min(tenant.idle_s or 0.0 for tenant in plan)
    return len(plan), -shortest_idle, room.replicas_of_model, room.node


def _why_nowhere(need: Need, rooms: Sequence[Room]) -> str:
    asked = f"It needs {_amount(need, need, up=True)}"
    if not rooms:
        return f"{asked}, and there is no node that could take it."
    nearest = sorted(rooms, key=lambda room: (-_reachable(room).vram_bytes, -_reachable(room).ram_bytes))
    if not need.vram_bytes:
        nearest.sort(key=lambda room: -_reachable(room).ram_bytes)
    sentences = [_why_not(need, room) for room in nearest[:_MAX_NAMED]]
    if len(rooms) > _MAX_NAMED:
        more = len(rooms) - _MAX_NAMED
        sentences.append("another node has less" if more == 1 else f"{more} other nodes have less")
    return f"{asked}; {'; '.join(sentences)}."


def _why_not(need: Need, room: Room) -> str:
    leaving = _evictable(room)
    if not need.fits(room.total):
        return f"{room.node} has only {_amount(need, room.total)} in all"
    free = f"{room.node} has {_amount(need, room.free)} free"
    if not leaving:
        return f"{free} and nothing that could be unloaded now"
    freed = _amount(need, _reachable(room) - room.free)
    return f"{free} and could free {freed} by unloading {_names(leaving)}, which is too little"


def _reachable(room: Room) -> Need:
    """What is free once everybody has left who may."""
    return sum((tenant.held for tenant in _evictable(room)), room.free)


def _names(tenants: Iterable[Tenant]) -> str:
    names = sorted({tenant.name for tenant in tenants})
    if len(names) > _MAX_NAMED:
        names = [*names[: _MAX_NAMED - 1], f"{len(names) - _MAX_NAMED + 1} others"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _is_or_are(tenants: Iterable[Tenant]) -> str:
    return "is" if len({tenant.name for tenant in tenants}) == 1 else "are"


def _amount(need: Need, amount: Need, *, up: bool = False) -> str:
    """The kinds of memory that `need` asks for. What is asked is rounded up and what is there down: the two never look
    equal where one is too little."""
    kinds = [(need.ram_bytes, amount.ram_bytes, "memory"), (need.vram_bytes, amount.vram_bytes, "GPU memory")]
    return (
        " and ".join(f"{_gib(there, up=up)} of {name}" for asked, there, name in kinds if asked > 0)
        or "nothing"
    )


def _gib(count: int, *, up: bool) -> str:
    tenths = max(0, count) * 10 / 2**30
    return f"{(math.ceil(tenths) if up else math.floor(tenths)) / 10:.1f} GiB"
