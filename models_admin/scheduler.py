"""What should run, and where: one pass over all served models that makes, places and lets go of replicas.

Any node's worker may run it, one at a time; it only writes rows. `lifecycle` on each node then makes them so. External
models are not scheduled: whether they answer is not ours to decide.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import psutil
import structlog
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from models_admin import demand, events, scaling
from models_admin.engine import instance_log, launch_config
from models_admin.locks import alone
from models_admin.memory import footprint
from models_admin.memory.placement import Decision, Need, Room, Tenant, choose
from models_admin.models import Instance, ModelFile, Node, PortalConfig, ServedModel
from models_admin.states import InstanceState as S
from models_admin.states import Shortage

log = structlog.get_logger(__name__)

# What an instance may be asked to give up first when there are too many.
_LEAST_USEFUL_FIRST = (S.FAILED, S.BACKING_OFF, S.CRASHED, S.PENDING, S.STARTING, S.READY)
# These are on their way out, or nobody knows: others take their place.
_NOT_COUNTED = frozenset({S.DRAINING, S.UNREACHABLE})
_KEPT_STOPPED = 10
# A replica that was just loaded for somebody is left to them until it was used, or for so long.
_SETTLED_S = 10.0
# A replica is idle once nothing was seen of it for as long as the reconciler may not have looked.
_IDLE_AFTER_S = 2.0
_UNKNOWN_BYTES = 2**62


def schedule(here: str) -> bool:
    """One pass. `here` is the node that runs it: alive, whatever its last heartbeat says.

    Returns true where somebody waits for memory that others may soon be done with: then look again shortly.
    """
    with alone("schedule", wait_ms=200) as is_alone:
        if not is_alone:
            return False
        world = _World(here)
        world.lose_silent_nodes()
        for served in world.served:
            try:
                world.follow_demand(served)
                world.adjust(served)
            except (DatabaseError, InterfaceError):
                raise
            except Exception:  # one model's trouble is its own
                log.exception("a model could not be scheduled", model=served.slug)
        world.place_all()
        return world.somebody_waits()


def preload() -> None:
    """Want one replica of each model that is to be loaded when the portal starts."""
    for served in ServedModel.objects.filter(enabled=True, preload=True, desired_replicas=0):
        _want(served, max(1, served.min_replicas), "preload")


def _want(served: ServedModel, replicas: int, why: str) -> None:
    changed = ServedModel.objects.filter(
        pk=served.pk, enabled=True, desired_replicas=served.desired_replicas
    ).update(desired_replicas=replicas, desired_since=timezone.now())
    if changed:
        log.info("replicas wanted", model=served.slug, before=served.desired_replicas, now=replicas, why=why)
        served.desired_replicas = replicas
        events.served_changed(served.pk)


@dataclass
class _Replica:
    """An instance with what the scheduler knows of it."""

    instance: Instance
    report: demand.Report | None
    outdated: bool

    @property
    def state(self) -> S:
        return S(self.instance.state)

    @property
    def on_its_way(self) -> bool:
        return self.state in {S.PENDING, S.STARTING, S.BACKING_OFF, S.CRASHED}

    def idle_s(self, now: datetime) -> float | None:
        """Seconds without use; None while it works."""
        if self.report and (self.report.busy or self.report.queued):
            return None
        known = [at for at in (self.instance.last_used_at, self.instance.ready_at) if at]
        return max(0.0, (now - max(known)).total_seconds()) if known else 0.0


class _World:
    """Everything as it was at the beginning of the pass, kept up with what the pass does."""

    def __init__(self, here: str) -> None:
        self.now = timezone.now()
        self.here = here
        self.portal = PortalConfig.current()
        self.nodes = {node.pk: node for node in Node.objects.all()}
        alive = set(Node.objects.alive().values_list("pk", flat=True))
        self.living = {pk: node for pk, node in self.nodes.items() if pk in alive or node.name == here}
        self.served = list(
            ServedModel.objects.filter(external=None).select_related("file__node", "file__projector")
        )
        self.configs = {served.pk: launch_config.of(served, self.portal) for served in self.served}
        self.is_asked = {served.pk: demand.is_asked(served.pk) for served in self.served}
        self.by_pk = {served.pk: served for served in self.served}
        self.replicas: dict[int, list[_Replica]] = defaultdict(list)
        for instance in (
            Instance.objects.current().filter(served__external=None).select_related("node", "file")
        ):
            # One object for each model, so that what the pass changes is seen everywhere.
            instance.served = self.by_pk[instance.served_id]
            self.replicas[instance.served_id].append(self._looked_at(instance))
        self.files = self._files()
        self._needs: dict[tuple[int, bool], Need] = {}
        # By node: what waits for those who are leaving, and what will be free once they have left.
        self._claims: dict[str, Need] = {}
        self._soon_free: dict[str, Need] = {}

    # Nodes ------------------------------------------------------------------------------------------------------------

    def lose_silent_nodes(self) -> None:
        """What runs on a node nobody hears of is out of reach; what was only meant for it goes elsewhere."""
        for replica in self._all():
            node = replica.instance.node
            if node is None or node.pk in self.living or replica.state == S.UNREACHABLE:
                continue
            if replica.state in {S.STARTING, S.READY, S.DRAINING}:
                replica.instance.move_to(S.UNREACHABLE, f"The machine {node.name} doesn't answer.")
            else:
                replica.instance.move_to(
                    S.STOPPED, f"The machine {node.name} doesn't answer.", retry_at=None, port=None
                )

    # Demand -----------------------------------------------------------------------------------------------------------

    def follow_demand(self, served: ServedModel) -> None:
        """Let the number of replicas wanted follow those who wait and those who don't come any more."""
        if not served.enabled:
            return
        asked = self.is_asked[served.pk]
        policy = scaling.Policy(
            least=served.min_replicas,
            most=max(served.max_replicas, served.min_replicas, 1),
            idle_timeout_s=served.idle_timeout_s or self.portal.idle_timeout_s,
            pinned=served.pinned,
        )
        wanted = scaling.target(served.desired_replicas, self._load(served, policy), policy, asked=asked)
        if (
            served.on_demand
            and not asked
            and not served.pinned
            and not self._serves(served)
            and (self.now - served.desired_since).total_seconds() > policy.up_after_s * 5
        ):
            # Whoever it was to be loaded for has gone.
            wanted = 0
        if wanted != served.desired_replicas:
            _want(served, wanted, "asked for" if asked else "load")

    def _load(self, served: ServedModel, policy: scaling.Policy) -> scaling.Load:
        ready = [one for one in self.replicas[served.pk] if one.state == S.READY]
        reports = [one.report for one in ready if one.report]
        idle = [one.idle_s(self.now) for one in ready]
        now = self.now.timestamp()
        # The gateway keeps its requests in a line of its own; others' wait in the replicas'.
        queued = sum(report.queued for report in reports) + demand.waiting_for(served.pk)
        load = scaling.Load(
            ready=len(ready),
            slots=sum(report.slots for report in reports),
            busy=sum(report.busy for report in reports),
            queued=queued,
            queued_for_s=0.0,
            calm_for_s=0.0,
            idle_s=min((one or 0.0 for one in idle), default=0.0),
        )
        if policy.most == 1 and len(ready) < 2:
            return load
        calm = scaling.is_calm(load, policy)
        return scaling.Load(
            **vars(load)
            | {
                "queued_for_s": demand.held_for(f"queued:{served.pk}", queued > 0, now),
                "calm_for_s": demand.held_for(f"calm:{served.pk}", calm, now),
            }
        )

    def _serves(self, served: ServedModel) -> bool:
        """True unless its replicas, if there are any, have only been waited for."""
        return any(one.state != S.PENDING for one in self.replicas[served.pk])

    # Replicas ---------------------------------------------------------------------------------------------------------

    def adjust(self, served: ServedModel) -> None:
        """Make rows where replicas are missing, let go of surplus ones, replace outdated ones one after the other."""
        replicas = self.replicas[served.pk]
        for replica in replicas:
            if replica.state == S.FAILED and replica.outdated:
                replica.instance.move_to(
                    S.PENDING, "Trying the new settings.", crashes=0, faults=0, node=None
                )
        counted = [one for one in replicas if one.state not in _NOT_COUNTED and one.state != S.STOPPED]
        for _ in range(served.desired_replicas - len(counted)):
            self._make(served)
        outdated = [one for one in counted if one.outdated and one.state in {S.READY, S.STARTING}]
        if outdated and served.desired_replicas:
            self._replace(served, counted, outdated)
            return
        counted.sort(key=self._usefulness)
        for replica in counted[: max(0, len(counted) - served.desired_replicas)]:
            self._let_go(replica, "Finishing its last answers.")

    def _replace(self, served: ServedModel, counted: list[_Replica], outdated: list[_Replica]) -> None:
        """One step of a rolling replacement: a new one first where there is room, otherwise after the old one."""
        surplus = len(counted) > served.desired_replicas
        oldest = min(outdated, key=self._usefulness)
        unready = [one for one in counted if not one.outdated and (one.on_its_way or one.state == S.FAILED)]
        if unready:
            # With settings that don't work the old ones go on. But a successor may need the place of an old one.
            homeless = all(
                one.state == S.PENDING and one.instance.node is None and one.instance.cause for one in unready
            )
            if surplus and homeless and self._fits_without(served, oldest):
                self._let_go(oldest, "Making room for its successor.")
            for extra in unready[: max(0, len(counted) - served.desired_replicas - 1)]:
                self._let_go(extra, "Not wanted any more.")
        elif surplus:
            self._let_go(oldest, "Replaced by a new one.")
        elif any(self._decide(served, room_only=True)):
            self._make(served, "Replaces one with old settings.")
        elif self._fits_without(served, oldest):
            self._let_go(oldest, "Making room for its successor.")
        else:
            # Nowhere is there room for the new settings; the old ones go on, and the page says why.
            self._make(served, "Replaces one with old settings.")

    def _fits_without(self, served: ServedModel, old: _Replica) -> bool:
        """True where a replica with the present settings would find room once the old one has left."""
        held = self._held(old)
        for _, rooms, need in self._decide(served):
            for room in rooms:
                gain = held if old.instance.node and old.instance.node.name == room.node else Need(0)
                if need.fits(room.free + gain):
                    return True
        return False

    def _make(self, served: ServedModel, reason: str = "Waiting to be started.") -> None:
        _forget_old(served)
        instance = Instance.objects.create(served=served, reason=reason)
        events.instance_changed(served.pk, instance.pk)
        self.replicas[served.pk].append(self._looked_at(instance))

    def _let_go(self, replica: _Replica, reason: str) -> None:
        instance = replica.instance
        if replica.state in {S.STARTING, S.READY}:
            instance.move_to(S.DRAINING, reason)
        elif replica.state != S.STOPPED:
            instance.move_to(S.STOPPED, "Not wanted any more.", port=None, retry_at=None)

    def _usefulness(self, replica: _Replica) -> tuple[bool, int, float]:
        """Ascending: outdated ones first, then by state, then the youngest."""
        since = replica.instance.ready_at or replica.instance.created_at
        return (not replica.outdated, _LEAST_USEFUL_FIRST.index(replica.state), -since.timestamp())

    def _looked_at(self, instance: Instance) -> _Replica:
        ready = instance.state == S.READY
        return _Replica(
            instance,
            report=demand.report_of(instance.pk) if ready else None,
            outdated=launch_config.is_outdated(instance, self.configs[instance.served_id]),
        )

    # Places -----------------------------------------------------------------------------------------------------------

    def place_all(self) -> None:
        """Find a place for whoever waits for one, the longest waiting first."""
        waiting = [one for one in self._all() if one.state == S.PENDING and one.instance.node is None]
        for replica in sorted(waiting, key=lambda one: one.instance.created_at):
            try:
                self._place(replica)
            except (DatabaseError, InterfaceError):
                raise
            except Exception:  # one model's trouble is its own
                log.exception("a replica could not be placed", instance=str(replica.instance))

    def somebody_waits(self) -> bool:
        """True where a request waits for a model that has found no room."""
        return any(
            one.state == S.PENDING and one.instance.cause == Shortage.NO_ROOM and self.is_asked[served_pk]
            for served_pk, replicas in self.replicas.items()
            for one in replicas
        )

    def _place(self, replica: _Replica) -> None:
        instance, served = replica.instance, replica.instance.served
        reason, rooms_seen, large_enough = "", False, False
        for decision, rooms, need in self._decide(served):
            rooms_seen |= bool(rooms)
            large_enough |= any(need.fits(room.total) for room in rooms)
            if decision.node is None:
                reason = reason or decision.reason
                continue
            if decision.evict:
                # Where enough is being freed already, nobody else has to leave.
                freed_on = next((room.node for room in rooms if need.fits(self._soon_free[room.node])), None)
                if freed_on is None:
                    self._evict(decision, served)
                freed_on = freed_on or decision.node
                self._claims[freed_on] = self._claims.get(freed_on, Need(0)) + need
                _explain(instance, "Waiting for memory that is being freed.", Shortage.NO_ROOM)
                return
            node = next(one for one in self.living.values() if one.name == decision.node)
            placed = Instance.objects.filter(pk=instance.pk, state=S.PENDING, node=None).update(
                node=node,
                file=self.files[served.pk][node.pk],
                expected_bytes=need.ram_bytes + need.vram_bytes,
                reason="Waiting to be started.",
                cause="",
            )
            if placed:
                instance.node, instance.expected_bytes = node, need.ram_bytes + need.vram_bytes
                events.instance_changed(served.pk, instance.pk)
            return
        too_large = rooms_seen and not large_enough
        _explain(instance, reason, Shortage.TOO_LARGE if too_large else Shortage.NO_ROOM)

    def _decide(
        self, served: ServedModel, *, room_only: bool = False
    ) -> Iterable[tuple[Decision, tuple[Room, ...], Need]]:
        """What could be done, the nodes with GPUs first where the model may use one.

        With `room_only` only decisions that need nobody to leave.
        """
        wants_gpu = self.configs[served.pk].gpu_layers != 0
        groups: tuple[tuple[bool, list[Node]], ...] = (
            (True, [node for node in self._candidates(served) if node.gpus and wants_gpu]),
            (False, [node for node in self._candidates(served) if not (node.gpus and wants_gpu)]),
        )
        for gpus, nodes in groups:
            if not nodes and (gpus or groups[0][1]):
                continue
            need = self._need(served, gpus=gpus)
            rooms = tuple(self._room(node, served, gpus=gpus) for node in nodes)
            decision = choose(need, rooms)
            if not room_only or (decision.node and not decision.evict):
                yield decision, rooms, need

    def _candidates(self, served: ServedModel) -> list[Node]:
        wanted = set(served.node_labels)
        return [
            node
            for pk, node in self.living.items()
            if pk in self.files[served.pk] and node.accepts_replicas and wanted <= set(node.labels)
        ]

    def _room(self, node: Node, served: ServedModel, *, gpus: bool) -> Room:
        """What the node has left after its reserve, its limit, and what was promised to those still loading."""
        here = [
            one
            for one in self._all()
            if one.instance.node_id == node.pk and one.state not in {S.STOPPED, S.FAILED}
        ]
        held = [self._held(one) for one in here]
        reserve = self.portal.memory_reserve_mib * 2**20
        is_known = node.memory_bytes or node.memory_limit_bytes is not None
        total = node.room_bytes(reserve) if is_known else _UNKNOWN_BYTES
        free = total - sum(need.ram_bytes for need in held)
        available = psutil.virtual_memory().available if node.name == self.here else node.memory_free_bytes
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
        after = sum(leaving, Need(free, vram_free)) - self._claims.get(node.name, Need(0))
        self._soon_free[node.name] = after
        return Room(
            node=node.name,
            free=Need(max(0, min(free, after.ram_bytes)), max(0, min(vram_free, after.vram_bytes))),
            total=Need(max(0, total), vram_total),
            tenants=tuple(self._tenant(one, need) for one, need in zip(here, held, strict=True)),
            replicas_of_model=sum(one.instance.served_id == served.pk for one in here),
        )

    def _tenant(self, replica: _Replica, held: Need) -> Tenant:
        instance = replica.instance
        served = instance.served
        used = instance.last_used_at and instance.ready_at and instance.last_used_at > instance.ready_at
        settled = instance.ready_at is not None and (
            used or (self.now - instance.ready_at).total_seconds() > _SETTLED_S
        )
        idle = replica.idle_s(self.now)
        running = [one for one in self.replicas[served.pk] if one.state in {S.STARTING, S.READY}]
        # Of several only as many may go as leave those that are always kept; the longest idle ones.
        spare = sorted(running, key=lambda one: -(one.idle_s(self.now) or 0.0))
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
                and not self.is_asked[served.pk]
                and any(one is replica for one in spare)
            ),
        )

    def _evict(self, decision: Decision, successor: ServedModel) -> None:
        for replica in self._all():
            if replica.instance.pk in decision.evict:
                served = replica.instance.served
                _want(served, max(served.min_replicas, served.desired_replicas - 1), "evicted")
                self._let_go(replica, f"Unloaded to make room for {successor.name}.")

    def _held(self, replica: _Replica) -> Need:
        """What the replica takes or will take."""
        instance = replica.instance
        if instance.expected_bytes is None and instance.memory_bytes is None:
            return Need(0)
        gpus = bool(instance.node and instance.node.gpus) and self.configs[instance.served_id].gpu_layers != 0
        need = self._need(instance.served, gpus=gpus)
        measured = instance.memory_bytes or 0
        if instance.launched and replica.outdated:
            # Its own settings are not the model's any more.
            need = Need(instance.expected_bytes or measured) if not gpus else need
        return Need(max(need.ram_bytes, measured), need.vram_bytes)

    def _need(self, served: ServedModel, *, gpus: bool) -> Need:
        key = (served.pk, gpus)
        if key not in self._needs:
            self._needs[key] = footprint.needed(served, self.portal, gpus=gpus) or Need(0)
        return self._needs[key]

    def _files(self) -> dict[int, dict[int, ModelFile]]:
        """For each model the file with its content on each node that has one."""
        by_content: dict[str, list[ModelFile]] = defaultdict(list)
        for file in ModelFile.objects.servable():
            if file.content_id:
                by_content[file.content_id].append(file)
        found: dict[int, dict[int, ModelFile]] = {}
        for served in self.served:
            own = served.file
            assert own is not None, "models without a file are external"
            same = {file.node_id: file for file in by_content.get(own.content_id, ())}
            # Its own file is where it is wanted, also while it is missing: the node says so.
            found[served.pk] = same | {own.node_id: own}
        return found

    def _all(self) -> list[_Replica]:
        return [one for replicas in self.replicas.values() for one in replicas]


def _forget_old(served: ServedModel) -> None:
    stopped = served.instances.filter(state=S.STOPPED, pid=None).order_by("-state_since")
    for old in stopped[_KEPT_STOPPED:]:
        instance_log.remove(str(old.pk))
        old.delete()


def _explain(instance: Instance, reason: str, cause: Shortage) -> None:
    if (instance.reason, instance.cause) != (reason, cause):
        Instance.objects.filter(pk=instance.pk).update(reason=reason, cause=cause)
        instance.reason, instance.cause = reason, cause
        events.instance_changed(instance.served_id, instance.pk)
