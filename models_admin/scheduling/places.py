"""A machine for each replica that waits for one, and who has to leave for it."""

from collections.abc import Iterable

import psutil
import structlog
from django.db import DatabaseError, InterfaceError

from models_admin import events
from models_admin.memory.placement import Decision, Need, Room, Tenant, choose
from models_admin.models import Instance, Node, ServedModel
from models_admin.scheduling.world import Replica, World, want
from models_admin.states import InstanceState as S
from models_admin.states import Shortage

log = structlog.get_logger(__name__)

# A replica that was just loaded for somebody is left to them until it was used, or for so long.
_SETTLED_S = 10.0
# A replica is idle once nothing was seen of it for as long as the reconciler may not have looked.
_IDLE_AFTER_S = 2.0
_UNKNOWN_BYTES = 2**62


def place_all(world: World) -> None:
    """Find a place for whoever waits for one, the longest waiting first."""
    waiting = [one for one in world.all() if one.state == S.PENDING and one.instance.node is None]
    for replica in sorted(waiting, key=lambda one: one.instance.created_at):
        try:
            _place(world, replica)
        except (DatabaseError, InterfaceError):
            raise
        except Exception:  # one model's trouble is its own
            log.exception("a replica could not be placed", instance=str(replica.instance))


def somebody_waits(world: World) -> bool:
    """True where a request waits for a model that has found no room."""
    return any(
        one.state == S.PENDING and one.instance.cause == Shortage.NO_ROOM and world.is_asked[served_pk]
        for served_pk, replicas in world.replicas.items()
        for one in replicas
    )


def _place(world: World, replica: Replica) -> None:
    instance, served = replica.instance, replica.instance.served
    reason, rooms_seen, large_enough = "", False, False
    for decision, rooms, need in decide(world, served):
        rooms_seen |= bool(rooms)
        large_enough |= any(need.fits(room.total) for room in rooms)
        if decision.node is None:
            reason = reason or decision.reason
            continue
        if decision.evict:
            # Where enough is being freed already, nobody else has to leave.
            freed_on = next((room.node for room in rooms if need.fits(world.soon_free[room.node])), None)
            if freed_on is None:
                _evict(world, decision, served)
            freed_on = freed_on or decision.node
            world.claims[freed_on] = world.claims.get(freed_on, Need(0)) + need
            _explain(instance, "Waiting for memory that is being freed.", Shortage.NO_ROOM)
            return
        node = next(one for one in world.living.values() if one.name == decision.node)
        placed = Instance.objects.filter(pk=instance.pk, state=S.PENDING, node=None).update(
            node=node,
            file=world.files[served.pk][node.pk],
            expected_bytes=need.ram_bytes + need.vram_bytes,
            reason="Waiting to be started.",
            cause="",
        )
        if placed:
            instance.node, instance.expected_bytes = node, need.ram_bytes + need.vram_bytes
            events.instance_changed(served.pk, instance.pk)
        return
    too_large = rooms_seen and not large_enough
    reason = reason if rooms_seen else _why_nowhere(world, served)
    _explain(instance, reason, Shortage.TOO_LARGE if too_large else Shortage.NO_ROOM)


def decide(
    world: World, served: ServedModel, *, room_only: bool = False
) -> Iterable[tuple[Decision, tuple[Room, ...], Need]]:
    """What could be done, the nodes with GPUs first where the model may use one.

    With `room_only` only decisions that need nobody to leave.
    """
    wants_gpu = world.configs[served.pk].gpu_layers != 0
    groups: tuple[tuple[bool, list[Node]], ...] = (
        (True, [node for node in _candidates(world, served) if node.gpus and wants_gpu]),
        (False, [node for node in _candidates(world, served) if not (node.gpus and wants_gpu)]),
    )
    for gpus, nodes in groups:
        if not nodes and (gpus or groups[0][1]):
            continue
        need = world.need(served, gpus=gpus)
        rooms = tuple(_room(world, node, served, gpus=gpus) for node in nodes)
        decision = choose(need, rooms)
        if not room_only or (decision.node and not decision.evict):
            yield decision, rooms, need


def _why_nowhere(world: World, served: ServedModel) -> str:
    """What keeps the model from every machine, in a sentence that says whom to ask."""
    there = [node for pk, node in world.living.items() if pk in world.files[served.pk]]
    if not there:
        return "No machine that answers has its file."
    labelled = [node for node in there if set(served.node_labels) <= set(node.labels)]
    if not labelled:
        return f"No machine with its file has the labels it asks for: {', '.join(served.node_labels)}."
    return f"What could take it takes nothing new: {', '.join(node.name for node in labelled)}."


def _candidates(world: World, served: ServedModel) -> list[Node]:
    wanted = set(served.node_labels)
    return [
        node
        for pk, node in world.living.items()
        if pk in world.files[served.pk] and node.accepts_replicas and wanted <= set(node.labels)
    ]


def _room(world: World, node: Node, served: ServedModel, *, gpus: bool) -> Room:
    """What the node has left after its reserve, its limit, and what was promised to those still loading."""
    here = [
        one
        for one in world.all()
        if one.instance.node_id == node.pk and one.state not in {S.STOPPED, S.FAILED}
    ]
    held = [world.held(one) for one in here]
    reserve = world.portal.memory_reserve_mib * 2**20
    is_known = node.memory_bytes or node.memory_limit_bytes is not None
    total = node.room_bytes(reserve) if is_known else _UNKNOWN_BYTES
    free = total - sum(need.ram_bytes for need in held)
    available = psutil.virtual_memory().available if node.name == world.here else node.memory_free_bytes
    if available is not None:
        promised = sum(
            max(0, need.ram_bytes - (one.instance.memory_bytes or 0))
            for one, need in zip(here, held, strict=True)
            if one.on_its_way
        )
        free = min(free, available - reserve - promised)
    vram_total = sum(int(gpu["memory_bytes"]) for gpu in node.gpus) if gpus else 0
    vram_free = sum(int(gpu["free_bytes"]) for gpu in node.gpus) if gpus else 0
    vram_free -= sum(need.vram_bytes for one, need in zip(here, held, strict=True) if one.on_its_way)
    vram_free = min(vram_free, vram_total - sum(need.vram_bytes for need in held))
    leaving = [need for one, need in zip(here, held, strict=True) if one.state == S.DRAINING]
    # What is being freed belongs to those it is freed for.
    after = sum(leaving, Need(free, vram_free)) - world.claims.get(node.name, Need(0))
    world.soon_free[node.name] = after
    return Room(
        node=node.name,
        free=Need(max(0, min(free, after.ram_bytes)), max(0, min(vram_free, after.vram_bytes))),
        total=Need(max(0, total), vram_total),
        tenants=tuple(_tenant(world, one, need) for one, need in zip(here, held, strict=True)),
        replicas_of_model=sum(one.instance.served_id == served.pk for one in here),
    )


def _tenant(world: World, replica: Replica, held: Need) -> Tenant:
    instance = replica.instance
    served = instance.served
    used = instance.last_used_at and instance.ready_at and instance.last_used_at > instance.ready_at
    settled = instance.ready_at is not None and (
        used or (world.now - instance.ready_at).total_seconds() > _SETTLED_S
    )
    idle = replica.idle_s(world.now)
    running = [one for one in world.replicas[served.pk] if one.state in {S.STARTING, S.READY}]
    # Of several only as many may go as leave those that are always kept; the longest idle ones.
    spare = sorted(running, key=lambda one: -(one.idle_s(world.now) or 0.0))
    spare = spare[: max(0, len(running) - served.min_replicas)]
    return Tenant(
        id=instance.pk,
        name=served.slug,
        held=held,
        idle_s=idle if idle is not None and idle >= _IDLE_AFTER_S else None,
        evictable=bool(
            replica.state == S.READY
            and settled
            and not served.pinned
            and not world.is_asked[served.pk]
            and any(one is replica for one in spare)
        ),
    )


def _evict(world: World, decision: Decision, successor: ServedModel) -> None:
    for replica in world.all():
        if replica.instance.pk in decision.evict:
            served = replica.instance.served
            want(served, max(served.min_replicas, served.desired_replicas - 1), "evicted")
            replica.let_go(f"Unloaded to make room for {successor.name}.")


def _explain(instance: Instance, reason: str, cause: Shortage) -> None:
    if (instance.reason, instance.cause) != (reason, cause):
        Instance.objects.filter(pk=instance.pk).update(reason=reason, cause=cause)
        instance.reason, instance.cause = reason, cause
        events.instance_changed(instance.served_id, instance.pk)
