"""One pass that brings a node's llama-servers a step nearer to what the scheduler wants of them.

`reconcile` looks, takes the next step for each instance and returns; waiting is a state, never a sleep. It may run at
any moment, twice, or after a crash of anything: whatever it finds half done, it finishes.
"""

import random
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from signal import SIGKILL, SIGTERM

import psutil
import structlog
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from llamaproj.errors import LlamaProjError
from models_admin import events, notes, scheduler, secret_box, usage
from models_admin.engine import diagnosis, engine, instance_log, launch, launch_config, loading, process
from models_admin.engine.launch_config import LaunchConfig
from models_admin.engine.probe import Health, Probe
from models_admin.locks import alone
from models_admin.memory import footprint
from models_admin.models import Instance, InstanceChange, ModelFile, Node, PortalConfig, ServedModel
from models_admin.states import InstanceState as S

log = structlog.get_logger(__name__)

_REASON_LOG_LINES = 12
# Of two passes over one node the second waits so long for the first.
_WAIT_MS = 1500
# How often one looks while somebody waits for memory.
_CROWDED_S = 0.5
_STOPPED_DRAIN_S = 30.0
_TIMELINE_KEPT = timedelta(days=30)


@dataclass(frozen=True)
class Patience:
    """How long each state may last, in seconds. None: what the model's launch configuration says."""

    start: float | None = None
    load_bytes_per_s: float = 50e6  # added to `start` for large files on slow disks
    silent: float | None = None
    drain: float | None = None
    term: float = 5.0
    ready_long: float = 60.0
    crashes: int = 5
    backoff_first: float = 0.5
    backoff_most: float = 60.0
    backoff_blameless_most: float = 8.0

    def backoff(self, crashes: int, *, its_fault: bool = True) -> float:
        """Doubling with each crash, a quarter more or less, so that replicas don't return in step."""
        most = self.backoff_most if its_fault else self.backoff_blameless_most
        wait = min(most, self.backoff_first * 2.0 ** min(crashes - 1, 30))
        return wait * random.uniform(0.75, 1.25)  # noqa: S311  # no secret


def reconcile(node_name: str, patience: Patience | None = None) -> float | None:
    """One pass over the node. Returns after how many seconds another is worthwhile; None: the clock's tick will do.

    Of two passes over one node the second waits a moment for the first, and leaves if that isn't enough.
    """
    with alone(f"reconcile:{node_name}", _WAIT_MS) as is_alone:
        if not is_alone:
            return None
        somebody_waits = scheduler.schedule(node_name)
        node = Node.objects.get(name=node_name)
        one_pass = _Pass(node, patience or Patience())
        for instance in list(
            Instance.objects.current()
            .filter(node=node)
            .select_related("served__file__projector", "served__external", "file__projector", "node")
        ):
            one_pass.step(instance)
        _end_forgotten(node)
        if somebody_waits:
            one_pass.look_again_in(_CROWDED_S)
        return one_pass.again_in


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
        living = [found for one in instances if (found := _process_of(one))]
        living += [found for found in process.with_mark(process.mark_of_all()) if found not in living]
        for one in living:
            process.send(one, SIGTERM)
        _, stubborn = psutil.wait_procs(living, timeout=wait_s)
        for one in stubborn:
            process.send(one, SIGKILL)
        psutil.wait_procs(stubborn, timeout=wait_s)
        for instance in instances:
            _stopped(instance, "The portal was shut down.")
        return len(living)


def tidy() -> None:
    """Away with what belongs to instances without a row (processes, and logs of models that were removed), and with the
    oldest part of long timelines."""
    # Looked at before the rows are: what is begun meanwhile has a row.
    marked = [(found, process.mark_in(found)) for found in process.with_mark(process.mark_of_all())]
    logs = instance_log.known()
    states = {str(pk): state for pk, state in Instance.objects.values_list("pk", "state")}
    InstanceChange.objects.filter(at__lt=timezone.now() - _TIMELINE_KEPT).delete()
    for instance_id in logs - states.keys():
        instance_log.remove(instance_id)
    for found, instance_id in marked:
        if instance_id and states.get(instance_id, S.STOPPED) == S.STOPPED:
            log.warning("ending a llama-server that nobody knows", pid=found.pid, instance=instance_id)
            process.send(found, SIGKILL)


def _end_forgotten(node: Node) -> None:
    """End processes of rows that count as stopped; the row forgets its pid only once the process is gone."""
    for instance in Instance.objects.filter(node=node, state=S.STOPPED, pid__isnull=False):
        found = _process_of(instance)
        if found:
            process.send(found, SIGKILL)
        else:
            Instance.objects.filter(pk=instance.pk, state=S.STOPPED).update(pid=None, pid_created=None)


def _process_of(instance: Instance) -> psutil.Process | None:
    return process.find(instance.pid, process.mark(str(instance.pk)))


def _stopped(instance: Instance, reason: str) -> None:
    # Another process couldn't use what this one has kept of its conversations.
    shutil.rmtree(launch.slots_of(str(instance.pk)), ignore_errors=True)
    found = _process_of(instance)
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


class _Pass:
    """The steps of one pass, one method a state."""

    def __init__(self, node: Node, patience: Patience) -> None:
        self.node = node
        self.patience = patience
        self.portal = PortalConfig.current()
        self.now = timezone.now()
        self.again_in: float | None = None

    def step(self, instance: Instance) -> None:
        """Take the next step, and the one after it while states change. One instance's trouble is its own."""
        steps = {
            S.PENDING: self._launch,
            S.STARTING: self._watch_start,
            S.READY: self._watch,
            S.UNREACHABLE: self._come_back,
            S.DRAINING: self._drain,
            S.CRASHED: self._judge,
            S.BACKING_OFF: self._wait,
        }
        try:
            seen: set[str] = set()
            while instance.state in steps and instance.state not in seen:
                seen.add(instance.state)
                steps[S(instance.state)](instance)
        except (DatabaseError, InterfaceError):
            raise
        except Exception as error:  # whatever it is, the other instances of this machine must go on
            log.exception("a step failed", instance=str(instance), state=instance.state)
            reason = error.message if isinstance(error, LlamaProjError) else type(error).__name__
            self._explain(instance, f"The last step failed: {reason}")
        if instance.pid:
            instance_log.trim(str(instance.pk))
        if notes.tell_log(instance.pk, instance_log.tail(str(instance.pk))):
            events.log_grown(instance.served_id, instance.pk)

    def look_again_in(self, seconds: float) -> None:
        """Something is on its way."""
        self.again_in = seconds if self.again_in is None else min(self.again_in, seconds)

    # States -------------------------------------------------------------------------------------------------------

    def _launch(self, instance: Instance) -> None:
        if instance.node is None:
            # Its place is the scheduler's to find.
            return
        file = instance.file or instance.served.file
        if file is None or not Path(file.path).is_file():
            self._explain(instance, f"The file {file.path if file else ''} isn't there.")
            if instance.file and instance.file != instance.served.file:
                # Another machine may still have it.
                self._set(instance, node=None, file=None)
            return
        if self._is_short(instance):
            # Another machine may have room by now, or this one again in a moment.
            self._set(instance, node=None, file=None, reason="Waiting for free memory.")
            events.instance_changed(instance.served_id, instance.pk)
            return
        config = self.config(instance)
        try:
            found_engine = engine.find(config.binary)
            spec = self._spec(instance, file, config)
            spec.argv(found_engine)
        except LlamaProjError as error:
            # What it would have been launched with: other settings are another try.
            instance.move_to(
                S.FAILED, error.message, launched=config.snapshot() | {"content": file.content_id}
            )
            return
        launched = config.snapshot() | {"content": file.content_id}
        api_key = launch.new_api_key()
        # Said before it is done: a worker that dies in between leaves a row that tells its successor to look.
        moved = instance.move_to(
            S.STARTING,
            "Loading the model.",
            port=spec.port,
            api_key_encrypted=secret_box.seal(api_key),
            launched=launched,
            pid=None,
            pid_created=None,
            started_at=self.now,
            ready_at=None,
            unhealthy_since=None,
            term_at=None,
            progress=0,
            cause="",
        )
        if not moved:
            return
        try:
            child = launch.spawn(spec, found_engine, instance_id=str(instance.pk), api_key=api_key)
        except OSError as error:
            self._crashed(instance, f"It can't be started: {error.strerror or error}.")
            return
        self._set(instance, pid=child.pid, pid_created=process.keep(child))
        log.info("started", instance=str(instance), pid=child.pid, port=spec.port, engine=found_engine.name)
        self.look_again_in(0.25)

    def _watch_start(self, instance: Instance) -> None:
        if instance.pid is None and not self._adopt(instance):
            self._crashed(
                instance, "It never came to life: the worker ended while starting it.", its_fault=False
            )
            return
        found = _process_of(instance)
        if found is None:
            self._ended(instance)
            return
        if Probe.of(instance).health() is Health.OK:
            instance.move_to(
                S.READY,
                "Ready for requests.",
                ready_at=timezone.now(),
                progress=None,
                memory_bytes=found.memory_info().rss,
            )
            self.look_again_in(0.25)
            return
        if found.status() == psutil.STATUS_STOPPED:
            # However long it may load: one that was halted doesn't.
            self._silent(instance, found)
            return
        file = instance.file or instance.served.file
        patience = (
            self.config(instance).start_timeout_s if self.patience.start is None else self.patience.start
        )
        allowed = patience + (file.size_bytes if file else 0) / self.patience.load_bytes_per_s
        # By the process's own age: a clock that was set doesn't make a load too long.
        age = process.age_s(found)
        if age > allowed:
            process.send(found, SIGKILL)
            self._crashed(instance, f"It didn't become ready within {allowed:.0f} seconds.")
            return
        progress = loading.progress(found, instance, age)
        if progress != instance.progress:
            self._set(instance, progress=progress)
            events.instance_changed(instance.served_id, instance.pk)
        self.look_again_in(0.25 if age < 10 else 1.0)

    def _watch(self, instance: Instance) -> None:
        found = _process_of(instance)
        if found is None:
            self._ended(instance)
            return
        if not instance.api_key:
            process.send(found, SIGKILL)
            self._crashed(instance, "Its key can't be read any more, because SECRET_KEY has changed.")
            return
        if Probe.of(instance).health() is not Health.OK:
            self._silent(instance, found)
            return
        changes: dict[str, object] = {}
        if instance.unhealthy_since is not None:
            changes |= {"unhealthy_since": None, "reason": "Ready for requests."}
        if instance.crashes and self._age(instance.ready_at) > self.patience.ready_long:
            changes |= {"crashes": 0, "faults": 0}
        memory = found.memory_info().rss
        if abs(memory - (instance.memory_bytes or 0)) > memory / 50:
            changes["memory_bytes"] = memory
        if changes:
            self._set(instance, **changes)
            events.instance_changed(instance.served_id, instance.pk)
        if usage.observe(instance, self.now):
            self._set(instance, last_used_at=self.now)
            ServedModel.objects.filter(pk=instance.served_id).update(last_used_at=self.now)
            # Only at work does a replica touch all it needs.
            footprint.note(instance, memory, self.now)

    def _come_back(self, instance: Instance) -> None:
        """This machine was out of reach for the others; what went on here meanwhile counts again."""
        if instance.pid is None:
            self._adopt(instance)
        found = _process_of(instance)
        if found is None:
            self._crashed(instance, "It ended while its machine was out of reach.", its_fault=False)
        elif instance.ready_at is None or Probe.of(instance).health() is not Health.OK:
            # Where it was in its life isn't known any more: a new one is simpler than to guess.
            process.send(found, SIGKILL)
            self._crashed(instance, "It wasn't ready when its machine came back.", its_fault=False)
        else:
            instance.move_to(S.READY, "Ready for requests again.", unhealthy_since=None, term_at=None)

    def _silent(self, instance: Instance, found: psutil.Process) -> None:
        config = self.config(instance)
        allowed = config.health_timeout_s if self.patience.silent is None else self.patience.silent
        if instance.unhealthy_since is None:
            self._set(instance, unhealthy_since=self.now)
            self._explain(instance, "It doesn't answer at the moment.")
        elif self._age(instance.unhealthy_since) > allowed:
            process.send(found, SIGKILL)
            # A request may do that to a model that is well: it is worth another start, however often.
            self._crashed(instance, f"It didn't answer for {allowed:.0f} seconds.", its_fault=False)

    def _drain(self, instance: Instance) -> None:
        if instance.pid is None:
            self._adopt(instance)
        found = _process_of(instance)
        if found is None:
            _stopped(instance, "Stopped.")
            # Somebody may be waiting for its memory.
            self.look_again_in(0.1)
            return
        if instance.term_at is None:
            age = self._age(instance.state_since)
            # A request that was routed just before the state changed has a second to arrive.
            idle = instance.ready_at is None or (age > 1.0 and Probe.of(instance).is_idle())
            if idle or age > self._drain_s(instance):
                process.send(found, SIGTERM)
                self._set(instance, term_at=self.now)
        elif self._age(instance.term_at) > self.patience.term:
            process.send(found, SIGKILL)
        self.look_again_in(0.3)

    def _drain_s(self, instance: Instance) -> float:
        """How long its last answers may take: not long where a person has stopped the model."""
        if self.patience.drain is not None:
            return self.patience.drain
        allowed = self.config(instance).drain_timeout_s
        return allowed if instance.served.enabled else min(allowed, _STOPPED_DRAIN_S)

    def _judge(self, instance: Instance) -> None:
        """After a crash: try again later, or give up."""
        crashes = instance.crashes
        if instance.faults >= self.patience.crashes or instance.cause in diagnosis.LASTING:
            # A known cause is shown with the lines that tell it.
            lines = [] if instance.cause else instance_log.tail(str(instance.pk), _REASON_LOG_LINES)
            last = "\n".join(lines)
            times = f"{crashes} crashes" if crashes > 1 else "one crash"
            reason = f"Given up after {times}. {instance.reason}\n{last}".strip()
            instance.move_to(S.FAILED, reason, retry_at=None)
            return
        wait = -self._age(instance.retry_at)
        told = f"{instance.reason} Starting again in {max(1.0, wait):.0f} s (crash {crashes})."
        instance.move_to(S.BACKING_OFF, told)

    def _wait(self, instance: Instance) -> None:
        left = -self._age(instance.retry_at)
        # A clock that was set back must not make it wait for hours.
        if left <= 0 or left > self.patience.backoff_most * 1.25:
            # By now another machine may be the better place.
            instance.move_to(S.PENDING, "Starting again.", retry_at=None, node=None, file=None)
            self.look_again_in(0.05)
        elif left < 5:
            self.look_again_in(left)

    # Their parts --------------------------------------------------------------------------------------------------

    def config(self, instance: Instance) -> LaunchConfig:
        """What holds for the instance's model."""
        return launch_config.of(instance.served, self.portal)

    def _spec(self, instance: Instance, file: ModelFile, config: LaunchConfig) -> launch.LaunchSpec:
        host = config.host or self.node.address
        ports = range(config.first_port, config.last_port + 1)
        return launch.LaunchSpec(
            model_path=file.path,
            alias=instance.served.slug,
            host=host,
            port=launch.free_port(host, self._taken_ports(), ports),
            config=config,
            slot_save_path=str(launch.slots_of(str(instance.pk))),
            projector_path=file.projector.path if file.projector else "",
        )

    def _ended(self, instance: Instance) -> None:
        """Its process is gone: the way it ended and what it last wrote may tell why."""
        ending = process.ending_of(instance.pid)
        found = diagnosis.of(
            instance_log.tail(str(instance.pk)), exit_status=ending.status, memory_kills=ending.memory_kills
        )
        if found is None:
            self._crashed(instance, ending.words, its_fault=ending.by_itself)
        else:
            its_fault = found.cause != diagnosis.Cause.NO_FILE
            self._crashed(instance, f"{ending.words} {found.summary}", found.cause, its_fault=its_fault)

    def _crashed(self, instance: Instance, reason: str, cause: str = "", *, its_fault: bool = True) -> None:
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

    def _adopt(self, instance: Instance) -> bool:
        """Find the process that a worker spawned just before it died."""
        for found in process.with_mark(process.mark(str(instance.pk))):
            self._set(instance, pid=found.pid, pid_created=found.create_time())
            return True
        return False

    def _is_short(self, instance: Instance) -> bool:
        """True where the memory it was promised is gone by now: others than the portal use it, too."""
        if self.node.gpus or instance.expected_bytes is None:
            return False
        loading_ones = Instance.objects.filter(node=self.node, state=S.STARTING)
        promised = sum(
            max(0, (other.expected_bytes or 0) - (other.memory_bytes or 0)) for other in loading_ones
        )
        return instance.expected_bytes > psutil.virtual_memory().available - promised

    def _taken_ports(self) -> frozenset[int]:
        ports = Instance.objects.filter(node=self.node, port__isnull=False).values_list("port", flat=True)
        return frozenset(port for port in ports if port is not None)

    def _explain(self, instance: Instance, reason: str) -> None:
        """Say why it stays in its state."""
        if instance.reason != reason:
            self._set(instance, reason=reason)
            events.instance_changed(instance.served_id, instance.pk)

    def _set(self, instance: Instance, **fields: object) -> None:
        Instance.objects.filter(pk=instance.pk).update(**fields)
        for name, value in fields.items():
            setattr(instance, name, value)

    def _age(self, since: datetime | None) -> float:
        """Seconds since then; negative for what lies ahead."""
        return (timezone.now() - since).total_seconds() if since else 0.0
