"""Rows for the replicas that are wanted: made where they are missing, let go where they are too many or outdated."""

from functools import partial

from models_admin import events
from models_admin.engine import instance_log
from models_admin.memory.placement import Need
from models_admin.models import Instance, ServedModel
from models_admin.scheduling.places import decide
from models_admin.scheduling.world import Replica, World
from models_admin.states import InstanceState as S

# What an instance may be asked to give up first when there are too many.
_LEAST_USEFUL_FIRST = (S.FAILED, S.BACKING_OFF, S.CRASHED, S.PENDING, S.STARTING, S.READY)
# These are on their way out, or nobody knows: others take their place.
_NOT_COUNTED = frozenset({S.DRAINING, S.UNREACHABLE})
_KEPT_STOPPED = 10


def lose_silent_nodes(world: World) -> None:
    """What runs on a node nobody hears of is out of reach; what was only meant for it goes elsewhere."""
    for replica in world.all():
        node = replica.instance.node
        if node is None or node.pk in world.living or replica.state == S.UNREACHABLE:
            continue
        if replica.state in {S.STARTING, S.READY, S.DRAINING}:
            replica.instance.move_to(S.UNREACHABLE, f"The machine {node.name} doesn't answer.")
        else:
            replica.instance.move_to(
                S.STOPPED, f"The machine {node.name} doesn't answer.", retry_at=None, port=None
            )


def adjust(world: World, served: ServedModel) -> None:
    """Make rows where replicas are missing, let go of surplus ones, replace outdated ones one after the other."""
    replicas = world.replicas[served.pk]
    for replica in replicas:
        if replica.state == S.FAILED and replica.outdated:
            replica.instance.move_to(S.PENDING, "Trying the new settings.", crashes=0, faults=0, node=None)
    counted = [one for one in replicas if one.state not in _NOT_COUNTED and one.state != S.STOPPED]
    for _ in range(served.desired_replicas - len(counted)):
        _make(world, served)
    outdated = [one for one in counted if one.outdated and one.state in {S.READY, S.STARTING}]
    if outdated and served.desired_replicas:
        _replace(world, served, counted, outdated)
        return
    counted.sort(key=partial(_usefulness, world))
    for replica in counted[: max(0, len(counted) - served.desired_replicas)]:
        replica.let_go("Finishing its last answers.")


def _replace(world: World, served: ServedModel, counted: list[Replica], outdated: list[Replica]) -> None:
    """One step of a rolling replacement: a new one first where there is room, otherwise after the old one."""
    surplus = len(counted) > served.desired_replicas
    oldest = min(outdated, key=partial(_usefulness, world))
    unready = [one for one in counted if not one.outdated and (one.on_its_way or one.state == S.FAILED)]
    if unready:
        # With settings that don't work the old ones go on. But a successor may need the place of an old one.
        homeless = all(
            one.state == S.PENDING and one.instance.node is None and one.instance.cause for one in unready
        )
        if surplus and homeless and _fits_without(world, served, oldest):
            oldest.let_go("Making room for its successor.")
        for extra in unready[: max(0, len(counted) - served.desired_replicas - 1)]:
            extra.let_go("Not wanted any more.")
    elif surplus:
        oldest.let_go("Replaced by a new one.")
    elif any(decide(world, served, room_only=True)):
        _make(world, served, "Replaces one with old settings.")
    elif _fits_without(world, served, oldest):
        oldest.let_go("Making room for its successor.")
    else:
        # Nowhere is there room for the new settings; the old ones go on, and the page says why.
        _make(world, served, "Replaces one with old settings.")


def _fits_without(world: World, served: ServedModel, old: Replica) -> bool:
    """True where a replica with the present settings would find room once the old one has left."""
    held = world.held(old)
    for _, rooms, need in decide(world, served):
        for room in rooms:
            gain = held if old.instance.node and old.instance.node.name == room.node else Need(0)
            if need.fits(room.free + gain):
                return True
    return False


def _make(world: World, served: ServedModel, reason: str = "Waiting to be started.") -> None:
    _forget_old(served)
    instance = Instance.objects.create(served=served, reason=reason)
    events.instance_changed(served.pk, instance.pk)
    world.replicas[served.pk].append(world.looked_at(instance))


def _usefulness(world: World, replica: Replica) -> tuple[bool, int, float]:
    """Ascending: outdated ones first, then by state, then the youngest."""
    since = replica.instance.ready_at or replica.instance.created_at
    return (not replica.outdated, _LEAST_USEFUL_FIRST.index(replica.state), -since.timestamp())


def _forget_old(served: ServedModel) -> None:
    stopped = served.instances.filter(state=S.STOPPED, pid=None).order_by("-state_since")
    for old in stopped[_KEPT_STOPPED:]:
        instance_log.remove(str(old.pk))
        old.delete()
