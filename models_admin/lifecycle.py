"""One pass that brings a node's llama-servers a step nearer to what the scheduler wants of them.

`reconcile` looks, takes the next step for each instance and returns; waiting is a state, never a sleep. It may run at
any moment, twice, or after a crash of anything: whatever it finds half done, it finishes.
"""

import shutil
from datetime import timedelta
from signal import SIGKILL, SIGTERM

import psutil
import structlog
from django.utils import timezone

from llamaproj.errors import LlamaProjError
from models_admin import scheduler
from models_admin.engine import instance_log, launch, process
from models_admin.instances.patience import Patience
from models_admin.instances.steps import step
from models_admin.instances.turn import Turn, process_of, stopped
from models_admin.locks import alone
from models_admin.models import Instance, InstanceChange, Node
from models_admin.states import InstanceState as S

log = structlog.get_logger(__name__)

# Of two passes over one node the second waits so long for the first.
_WAIT_MS = 1500
# How often one looks while somebody waits for memory.
_CROWDED_S = 0.5
_TIMELINE_KEPT = timedelta(days=30)


def reconcile(node_name: str, patience: Patience | None = None) -> float | None:
    """One pass over the node. Returns after how many seconds another is worthwhile; None: the clock's tick will do.

    Of two passes over one node the second waits a moment for the first, and leaves if that isn't enough.
    """
    with alone(f"reconcile:{node_name}", _WAIT_MS) as is_alone:
        if not is_alone:
            return None
        somebody_waits = scheduler.schedule(node_name)
        node = Node.objects.get(name=node_name)
        instances = list(
            Instance.objects.current()
            .filter(node=node)
            .select_related("served__file__projector", "served__external", "file__projector", "node")
        )
        turn = Turn(node, patience or Patience(), instances)
        for instance in instances:
            step(turn, instance)
        _end_forgotten(node)
        if somebody_waits:
            turn.look_again_in(_CROWDED_S)
        return turn.again_in


def stop_all(node_name: str, *, wait_s: float = 2.0) -> int:
    """End every llama-server of the node now. What is wanted stays wanted, so the next pass starts them again.

    Returns how many processes were ended.
    """
    with alone(f"reconcile:{node_name}", _WAIT_MS) as is_alone:
        if not is_alone:
            raise LlamaProjError("The node's worker is busy; try again.")
        instances = list(
            Instance.objects.current().filter(node__name=node_name).select_related("node", "served")
        )
        living = [found for one in instances if (found := process_of(one))]
        living += [found for found in process.with_mark(process.mark_of_all()) if found not in living]
        for one in living:
            process.send(one, SIGTERM)
        _, stubborn = psutil.wait_procs(living, timeout=wait_s)
        for one in stubborn:
            process.send(one, SIGKILL)
        psutil.wait_procs(stubborn, timeout=wait_s)
        for instance in instances:
            stopped(instance, "The portal was shut down.")
        return len(living)


def tidy() -> None:
    """Away with what belongs to instances without a row (processes, logs, saved slots), with the slots of those that
    ended where nobody saw it, and with the oldest part of long timelines."""
    # Looked at before the rows are: what is begun meanwhile has a row.
    marked = [(found, process.mark_in(found)) for found in process.with_mark(process.mark_of_all())]
    logs, slots = instance_log.known(), launch.with_slots()
    states = {str(pk): state for pk, state in Instance.objects.values_list("pk", "state")}
    InstanceChange.objects.filter(at__lt=timezone.now() - _TIMELINE_KEPT).delete()
    for instance_id in logs - states.keys():
        instance_log.remove(instance_id)
    for instance_id in slots:
        if states.get(instance_id, S.STOPPED) == S.STOPPED:
            shutil.rmtree(launch.slots_of(instance_id), ignore_errors=True)
    for found, instance_id in marked:
        if instance_id and states.get(instance_id, S.STOPPED) == S.STOPPED:
            log.warning("ending a llama-server that nobody knows", pid=found.pid, instance=instance_id)
            process.send(found, SIGKILL)


def _end_forgotten(node: Node) -> None:
    """End processes of rows that count as stopped; the row forgets its pid only once the process is gone."""
    for instance in Instance.objects.filter(node=node, state=S.STOPPED, pid__isnull=False):
        found = process_of(instance)
        if found:
            process.send(found, SIGKILL)
        else:
            Instance.objects.filter(pk=instance.pk, state=S.STOPPED).update(pid=None, pid_created=None)
