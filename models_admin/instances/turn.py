"""What the steps of one pass over a node share: what was seen at its beginning, and how a row is written."""

import shutil
from collections.abc import Iterable
from datetime import datetime, timedelta

import psutil
import structlog
from django.utils import timezone

from models_admin import events
from models_admin.engine import launch, launch_config, process
from models_admin.engine.launch_config import LaunchConfig
from models_admin.engine.probe import SILENT, Look, looks_at
from models_admin.instances.patience import Patience
from models_admin.models import Instance, Node, PortalConfig
from models_admin.states import InstanceState as S

log = structlog.get_logger(__name__)


def process_of(instance: Instance) -> psutil.Process | None:
    """Its process, if that still runs."""
    return process.find(instance.pid, process.mark(str(instance.pk)))


def stopped(instance: Instance, reason: str) -> None:
    """Note that it has stopped, and forget what only a running one has."""
    # Another process couldn't use what this one has kept of its conversations.
    shutil.rmtree(launch.slots_of(str(instance.pk)), ignore_errors=True)
    found = process_of(instance)
    if found is None:
        # What is known of how it ended isn't needed.
        process.ending_of(instance.pid)
    kept = {} if found else {"pid": None, "pid_created": None}
    instance.move_to(
        S.STOPPED,
        reason,
        port=None,
        api_key_encrypted=b"",
        memory_bytes=None,
        progress=None,
        term_at=None,
        retry_at=None,
        **kept,
    )


class Turn:
    """One pass over one node."""

    def __init__(self, node: Node, patience: Patience, instances: Iterable[Instance]) -> None:
        self.node = node
        self.patience = patience
        self.portal = PortalConfig.current()
        self.now = timezone.now()
        self.again_in: float | None = None
        # After `now`: nobody is taken for idle by a look from before.
        self._looks = looks_at(instances)

    def look(self, instance: Instance) -> Look:
        """What its llama-server said at the beginning of the pass."""
        return self._looks.get(instance.pk, SILENT)

    def look_again_in(self, seconds: float) -> None:
        """Something is on its way."""
        self.again_in = seconds if self.again_in is None else min(self.again_in, seconds)

    def config(self, instance: Instance) -> LaunchConfig:
        """What holds for the instance's model."""
        return launch_config.of(instance.served, self.portal)

    def crashed(self, instance: Instance, reason: str, cause: str = "", *, its_fault: bool = True) -> None:
        """Note a crash, and when the next start is due. Only crashes that are the replica's own fault are counted
        against it: what was done to it says nothing of whether it can run."""
        log.warning("crashed", instance=str(instance), pid=instance.pid, reason=reason, cause=cause)
        crashes = instance.crashes + 1
        wait = timedelta(seconds=self.patience.backoff(crashes, its_fault=its_fault))
        instance.move_to(
            S.CRASHED,
            reason,
            port=None,
            memory_bytes=None,
            progress=None,
            cause=cause,
            crashes=crashes,
            faults=instance.faults + its_fault,
            retry_at=timezone.now() + wait,
        )

    def explain(self, instance: Instance, reason: str) -> None:
        """Say why it stays in its state."""
        if instance.reason != reason:
            self.set(instance, reason=reason)
            events.instance_changed(instance.served_id, instance.pk)

    def set(self, instance: Instance, **fields: object) -> None:
        """Write columns of its row."""
        Instance.objects.filter(pk=instance.pk).update(**fields)
        for name, value in fields.items():
            setattr(instance, name, value)

    def age(self, since: datetime | None) -> float:
        """Seconds since then; negative for what lies ahead."""
        return (timezone.now() - since).total_seconds() if since else 0.0
