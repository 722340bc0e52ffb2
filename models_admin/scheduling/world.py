"""Everything the scheduler decides about, as it was at the beginning of a pass, kept up with what the pass does."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

import structlog
from django.utils import timezone

from models_admin import demand, events
from models_admin.engine import launch_config
from models_admin.memory import footprint
from models_admin.memory.placement import Need
from models_admin.models import Instance, ModelFile, Node, PortalConfig, ServedModel
from models_admin.states import InstanceState as S

log = structlog.get_logger(__name__)


def want(served: ServedModel, replicas: int, why: str) -> None:
    """Set the number of replicas, unless somebody else has just set another."""
    changed = ServedModel.objects.filter(
        pk=served.pk, enabled=True, desired_replicas=served.desired_replicas
    ).update(desired_replicas=replicas, desired_since=timezone.now())
    if changed:
        log.info("replicas wanted", model=served.slug, before=served.desired_replicas, now=replicas, why=why)
        served.desired_replicas = replicas
        events.served_changed(served.pk)


@dataclass
class Replica:
    """An instance with what the scheduler knows of it."""

    instance: Instance
    report: demand.Report | None
    outdated: bool

    @property
    def state(self) -> S:
        """Where it is in its life."""
        return S(self.instance.state)

    @property
    def on_its_way(self) -> bool:
        """True where it is to become ready."""
        return self.state in {S.PENDING, S.STARTING, S.BACKING_OFF, S.CRASHED}

    def idle_s(self, now: datetime) -> float | None:
        """Seconds without use; None while it works."""
        if self.report and (self.report.busy or self.report.queued):
            return None
        known = [at for at in (self.instance.last_used_at, self.instance.ready_at) if at]
        return max(0.0, (now - max(known)).total_seconds()) if known else 0.0

    def let_go(self, reason: str) -> None:
        """Have it end after its last answers; what doesn't run yet is just forgotten."""
        if self.state in {S.STARTING, S.READY}:
            self.instance.move_to(S.DRAINING, reason)
        elif self.state != S.STOPPED:
            self.instance.move_to(S.STOPPED, "Not wanted any more.", port=None, retry_at=None)


class World:
    """Models, machines and replicas."""

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
        self.replicas: dict[int, list[Replica]] = defaultdict(list)
        for instance in (
            Instance.objects.current()
            .filter(served__external=None)
            .select_related("node", "file")
            .defer("file__metadata", "file__chat_template")
        ):
            # One object for each model, so that what the pass changes is seen everywhere.
            instance.served = self.by_pk[instance.served_id]
            self.replicas[instance.served_id].append(self.looked_at(instance))
        self.files = self._files()
        self._needs: dict[tuple[int, bool], Need] = {}
        # By node: what waits for those who are leaving, and what will be free once they have left.
        self.claims: dict[str, Need] = {}
        self.soon_free: dict[str, Need] = {}

    def looked_at(self, instance: Instance) -> Replica:
        """The instance with what its node says of it."""
        ready = instance.state == S.READY
        return Replica(
            instance,
            report=demand.report_of(instance.pk) if ready else None,
            outdated=launch_config.is_outdated(instance, self.configs[instance.served_id]),
        )

    def all(self) -> list[Replica]:
        """Those of all models."""
        return [one for replicas in self.replicas.values() for one in replicas]

    def held(self, replica: Replica) -> Need:
        """What the replica takes or will take."""
        instance = replica.instance
        if instance.expected_bytes is None and instance.memory_bytes is None:
            return Need(0)
        gpus = bool(instance.node and instance.node.gpus) and self.configs[instance.served_id].gpu_layers != 0
        need = self.need(instance.served, gpus=gpus)
        measured = instance.memory_bytes or 0
        if instance.launched and replica.outdated:
            # Its own settings are not the model's any more.
            need = Need(instance.expected_bytes or measured) if not gpus else need
        return Need(max(need.ram_bytes, measured), need.vram_bytes)

    def need(self, served: ServedModel, *, gpus: bool) -> Need:
        """What a replica of the model takes; worked out once a pass."""
        key = (served.pk, gpus)
        if key not in self._needs:
            self._needs[key] = footprint.needed(served, self.portal, gpus=gpus) or Need(0)
        return self._needs[key]

    def _files(self) -> dict[int, dict[int, ModelFile]]:
        """For each model the file with its content on each node that has one."""
        by_content: dict[str, list[ModelFile]] = defaultdict(list)
        wanted = {served.file.content_id for served in self.served if served.file} - {""}
        # A folder may hold a thousand others, and a header is long; this runs every second or two.
        for file in ModelFile.objects.servable().filter(content_id__in=wanted).only("node", "content_id"):
            by_content[file.content_id].append(file)
        found: dict[int, dict[int, ModelFile]] = {}
        for served in self.served:
            own = served.file
            assert own is not None, "models without a file are external"
            same = {file.node_id: file for file in by_content.get(own.content_id, ())}
            # Its own file is where it is wanted, also while it is missing: the node says so.
            found[served.pk] = same | {own.node_id: own}
        return found
