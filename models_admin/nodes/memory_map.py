"""What sits where in a node's memory: a bar for its RAM and one for each GPU, cut into shares.

What replicas take is measured, or expected while they load; what others take is the rest of what isn't free. The
reserve is the part of the free memory that no replica may take.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from models_admin import overview
from models_admin.models import Instance, Node
from models_admin.states import InstanceState as S

_HUES = 5


class Kind(StrEnum):
    """What a share of a bar is."""

    REPLICA = "replica"
    PROMISED = "promised"
    OTHER = "other"
    RESERVE = "reserve"
    FREE = "free"


@dataclass(frozen=True)
class Share:
    """A part of a bar. `start` and `width` are percent of it; `hue` tells replicas apart."""

    kind: Kind
    label: str
    bytes: int
    start: float
    width: float
    hue: int = 0
    instance: Instance | None = None

    @property
    def word(self) -> str:
        """The replica's state in a word."""
        return overview.word_of(self.instance) if self.instance else ""


@dataclass(frozen=True)
class Bar:
    """One memory: the machine's, or a GPU's."""

    label: str
    total_bytes: int
    free_bytes: int
    shares: tuple[Share, ...]

    @property
    def spoken(self) -> str:
        """The bar for those who can't see it."""
        return ", ".join(f"{share.label} {share.width:.0f} %" for share in self.shares)


def bars_of(node: Node, instances: Iterable[Instance], reserve_bytes: int) -> list[Bar]:
    """The node's bars. `instances` are those on it that aren't history."""
    here = [one for one in instances if one.state != S.STOPPED]
    hues = {one.pk: number % _HUES + 1 for number, one in enumerate(here)}
    bars = []
    if node.memory_bytes:
        bars.append(
            _bar("Memory", node.memory_bytes, node.memory_free_bytes, reserve_bytes, _held(here), hues)
        )
    for gpu in node.gpus:
        by_pid = {int(pid): int(count) for pid, count in gpu.get("by_pid", {}).items()}
        held = [(one, by_pid[one.pid], 0) for one in here if one.pid in by_pid]
        label = f"GPU {gpu['index']}: {gpu['name']}"
        bars.append(_bar(label, int(gpu["memory_bytes"]), int(gpu["free_bytes"]), 0, held, hues))
    return bars


def _held(instances: Iterable[Instance]) -> list[tuple[Instance, int, int]]:
    """Each replica with what it takes now and what it will take beyond that."""
    held = []
    for one in instances:
        # What is out of reach or on its way in; who waits to be started again holds nothing.
        alive = one.state in {S.STARTING, S.READY, S.DRAINING, S.UNREACHABLE}
        taken = (one.memory_bytes or 0) if alive else 0
        loading = one.state == S.STARTING or (one.state == S.PENDING and one.node_id is not None)
        held.append((one, taken, max(0, (one.expected_bytes or 0) - taken) if loading else 0))
    return held


def _bar(
    label: str,
    total: int,
    free: int | None,
    reserve: int,
    held: list[tuple[Instance, int, int]],
    hues: dict[UUID, int],
) -> Bar:
    taken = sum(bytes_ for _, bytes_, _ in held)
    free = max(0, min(total - taken, total if free is None else free))
    rest = free
    parts: list[tuple[Kind, str, int, Instance | None]] = []
    for instance, bytes_, _ in held:
        parts.append((Kind.REPLICA, instance.served.name, bytes_, instance))
    parts.append((Kind.OTHER, "other programs", max(0, total - free - taken), None))
    for instance, _, promised in held:
        promised = min(promised, rest)
        rest -= promised
        parts.append((Kind.PROMISED, f"{instance.served.name}, loading", promised, instance))
    kept = min(reserve, rest)
    parts += [(Kind.FREE, "free", rest - kept, None), (Kind.RESERVE, "reserve", kept, None)]
    shares, start = [], 0.0
    for kind, name, bytes_, owner in parts:
        if bytes_ <= 0:
            continue
        width = bytes_ / total * 100 if total else 0.0
        hue = hues[owner.pk] if owner else 0
        shares.append(Share(kind, name, bytes_, round(start, 3), round(width, 3), hue, owner))
        start += width
    return Bar(label, total, free, tuple(shares))
