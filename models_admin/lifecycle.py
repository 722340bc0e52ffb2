"""What is wanted and what is: one pass that brings a node's llama-servers a step nearer to what is wanted.

`reconcile` looks, compares, takes the next step for each instance and returns; waiting is a state, never a sleep. It
may run at any moment, twice, or after a crash of anything: whatever it finds half done, it finishes.
"""

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from signal import SIGKILL, SIGTERM

import psutil
import structlog
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from llamaproj.errors import LlamaProjError
from models_admin import (
    catalog,
    engine,
    events,
    instance_log,
    launch,
    launch_config,
    notes,
    process,
    secret_box,
)
from models_admin.models import Instance, Node, ServedModel
from models_admin.probe import Health, Probe
from models_admin.states import InstanceState as S

log = structlog.get_logger(__name__)

# What an instance may be asked to give up first when there are too many.
_LEAST_USEFUL_FIRST = (S.FAILED, S.BACKING_OFF, S.CRASHED, S.UNREACHABLE, S.PENDING, S.STARTING, S.READY)
_KEPT_STOPPED = 10
_REASON_LOG_LINES = 12


@dataclass(frozen=True)
class Patience:
    """How long each state may last, in seconds."""

    start: float = 120.0
    load_bytes_per_s: float = 50e6  # added to `start` for large files on slow disks
    silent: float = 30.0
    drain: float = 30.0
    term: float = 5.0
    ready_long: float = 60.0
    crashes: int = 5
    backoff_first: float = 0.5
    backoff_most: float = 60.0

    def backoff(self, crashes: int) -> float:
        """Doubling with each crash, a quarter more or less, so that replicas don't return in step."""
        wait = min(self.backoff_most, self.backoff_first * 2.0 ** min(crashes - 1, 30))
        return wait * random.uniform(0.75, 1.25)  # noqa: S311  # no secret


def reconcile(node_name: str, patience: Patience | None = None) -> float | None:
    """One pass over the node. Returns after how many seconds another is worthwhile; None: the clock's tick will do.

    Of two passes over one node the second waits a moment for the first, and leaves if that isn't enough.
    """
    with _alone(node_name) as alone:
        if not alone:
            return None
        node = Node.objects.get(name=node_name)
        _adjust_replicas(node)
        one_pass = _Pass(node, patience or Patience())
        for instance in list(
            Instance.objects.current()
            .filter(node=node)
            .select_related("served__file__projector", "served__external", "file__projector", "node")
        ):
            one_pass.step(instance)
        _end_forgotten(node)
        return one_pass.again_in


def stop_all(node_name: str, *, wait_s: float = 2.0) -> int:
    """End every llama-server of the node now. What is wanted stays wanted, so the next pass starts them again.

    Returns how many processes were ended.
    """
    with _alone(node_name) as alone:
        if not alone:
            raise LlamaProjError("The node's worker is busy; try again.")
        instances = list(
            Instance.objects.current().filter(node__name=node_name).select_related("node", "served")
        )
        living = [found for one in instances if (found := process.find(one.pid, one.pid_created))]
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
    """Away with what belongs to instances without a row: processes, and logs of models that were removed."""
    states = {str(pk): state for pk, state in Instance.objects.values_list("pk", "state")}
    for instance_id in instance_log.known() - states.keys():
        instance_log.remove(instance_id)
    for found in process.with_mark(process.mark_of_all()):
        instance_id = found.environ().get("LLAMAPROJ_INSTANCE", "")
        if instance_id and states.get(instance_id, S.STOPPED) == S.STOPPED:
            log.warning("ending a llama-server that nobody knows", pid=found.pid, instance=instance_id)
            process.send(found, SIGKILL)


def _adjust_replicas(node: Node) -> None:
    """Make rows where replicas are missing, let go of surplus ones."""
    for served in ServedModel.objects.filter(file__node=node):
        instances = Instance.objects.current().filter(served=served, node=node).exclude(state=S.DRAINING)
        replicas = sorted(instances, key=lambda one: _LEAST_USEFUL_FIRST.index(S(one.state)))
        for _ in range(served.desired_replicas - len(replicas)):
            _forget_old(served)
            instance = Instance.objects.create(served=served, node=node, reason="Waiting to be started.")
            events.instance_changed(served.pk, instance.pk)
        for instance in replicas[: max(0, len(replicas) - served.desired_replicas)]:
            if instance.state in {S.STARTING, S.READY}:
                instance.move_to(S.DRAINING, "Finishing its last answers.")
            else:
                _stopped(instance, "Stopped.")


def _forget_old(served: ServedModel) -> None:
    stopped = served.instances.filter(state=S.STOPPED, pid=None).order_by("-state_since")
    for old in stopped[_KEPT_STOPPED:]:
        instance_log.remove(str(old.pk))
        old.delete()


def _end_forgotten(node: Node) -> None:
    """End processes of rows that count as stopped; the row forgets its pid only once the process is gone."""
    for instance in Instance.objects.filter(node=node, state=S.STOPPED, pid__isnull=False):
        found = process.find(instance.pid, instance.pid_created)
        if found:
            process.send(found, SIGKILL)
        else:
            Instance.objects.filter(pk=instance.pk, state=S.STOPPED).update(pid=None, pid_created=None)


def _stopped(instance: Instance, reason: str) -> None:
    # Another process couldn't use what this one has kept of its conversations.
    shutil.rmtree(launch.slots_of(str(instance.pk)), ignore_errors=True)
    found = process.find(instance.pid, instance.pid_created)
    kept = {} if found else {"pid": None, "pid_created": None}
    instance.move_to(
        S.STOPPED,
        reason,
        port=None,
        api_key_encrypted=b"",
        memory_bytes=None,
        term_at=None,
        retry_at=None,
        **kept,
    )


class _Pass:
    """The steps of one pass, one method a state."""

    def __init__(self, node: Node, patience: Patience) -> None:
        self.node = node
        self.patience = patience
        self.now = timezone.now()
        self.again_in: float | None = None

    def step(self, instance: Instance) -> None:
        """Take the next step, and the one after it while states change. One instance's trouble is its own."""
        steps = {
            S.PENDING: self._launch,
            S.STARTING: self._watch_start,
            S.READY: self._watch,
            S.DRAINING: self._drain,
            S.CRASHED: self._judge,
            S.BACKING_OFF: self._wait,
        }
        try:
            seen: set[str] = set()
            while instance.state in steps and instance.state not in seen:
                seen.add(instance.state)
                steps[S(instance.state)](instance)
        except (LlamaProjError, OSError, psutil.Error) as error:
            log.exception("a step failed", instance=str(instance), state=instance.state)
            self._explain(instance, f"The last step failed: {error}")
        if instance.pid:
            instance_log.trim(str(instance.pk))
        if notes.tell_log(instance.pk, instance_log.tail(str(instance.pk))):
            events.log_grown(instance.served_id, instance.pk)

    def _soon(self, seconds: float) -> None:
        self.again_in = seconds if self.again_in is None else min(self.again_in, seconds)

    # States -------------------------------------------------------------------------------------------------------

    def _launch(self, instance: Instance) -> None:
        file = instance.file or instance.served.file
        if file is None or not Path(file.path).is_file():
            self._explain(instance, f"The file {file.path if file else ''} isn't there.")
            return
        if shortage := self._shortage(instance):
            self._explain(instance, shortage)
            return
        try:
            found_engine = engine.find()
            spec = self._spec(instance)
        except LlamaProjError as error:
            instance.move_to(S.FAILED, error.message)
            return
        api_key = launch.new_api_key()
        # Said before it is done: a worker that dies in between leaves a row that tells its successor to look.
        moved = instance.move_to(
            S.STARTING,
            "Loading the model.",
            port=spec.port,
            api_key_encrypted=secret_box.seal(api_key),
            pid=None,
            pid_created=None,
            started_at=self.now,
            ready_at=None,
            unhealthy_since=None,
            term_at=None,
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
        self._soon(0.25)

    def _watch_start(self, instance: Instance) -> None:
        if instance.pid is None and not self._adopt(instance):
            self._crashed(instance, "It never came to life: the worker ended while starting it.")
            return
        found = process.find(instance.pid, instance.pid_created)
        if found is None:
            self._crashed(instance, process.ending_of(instance.pid))
            return
        if Probe.of(instance).health() is Health.OK:
            instance.move_to(S.READY, "Ready for requests.", ready_at=timezone.now())
            self._soon(0.25)
            return
        file = instance.file or instance.served.file
        allowed = self.patience.start + (file.size_bytes if file else 0) / self.patience.load_bytes_per_s
        if self._age(instance.state_since) > allowed:
            process.send(found, SIGKILL)
            self._crashed(instance, f"It didn't become ready within {allowed:.0f} seconds.")
            return
        self._soon(0.25 if self._age(instance.state_since) < 10 else 1.0)

    def _watch(self, instance: Instance) -> None:
        found = process.find(instance.pid, instance.pid_created)
        if found is None:
            self._crashed(instance, process.ending_of(instance.pid))
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
            changes["crashes"] = 0
        memory = found.memory_info().rss
        if abs(memory - (instance.memory_bytes or 0)) > memory / 50:
            changes["memory_bytes"] = memory
        if changes:
            self._set(instance, **changes)
            events.instance_changed(instance.served_id, instance.pk)
        self._note_rate(instance)

    def _silent(self, instance: Instance, found: psutil.Process) -> None:
        if instance.unhealthy_since is None:
            self._set(instance, unhealthy_since=self.now)
            self._explain(instance, "It doesn't answer at the moment.")
        elif self._age(instance.unhealthy_since) > self.patience.silent:
            process.send(found, SIGKILL)
            self._crashed(instance, f"It didn't answer for {self.patience.silent:.0f} seconds.")

    def _drain(self, instance: Instance) -> None:
        found = process.find(instance.pid, instance.pid_created)
        if found is None:
            _stopped(instance, "Stopped.")
            return
        if instance.term_at is None:
            age = self._age(instance.state_since)
            # A request that was routed just before the state changed has a second to arrive.
            idle = instance.ready_at is None or (age > 1.0 and Probe.of(instance).is_idle())
            if idle or age > self.patience.drain:
                process.send(found, SIGTERM)
                self._set(instance, term_at=self.now)
        elif self._age(instance.term_at) > self.patience.term:
            process.send(found, SIGKILL)
        self._soon(0.3)

    def _judge(self, instance: Instance) -> None:
        """After a crash: try again later, or give up."""
        crashes = instance.crashes + 1
        if crashes >= self.patience.crashes:
            last = "\n".join(instance_log.tail(str(instance.pk), _REASON_LOG_LINES))
            reason = f"Given up after {crashes} crashes. {instance.reason}\n{last}".strip()
            instance.move_to(S.FAILED, reason, crashes=crashes, retry_at=None)
            return
        wait = self.patience.backoff(crashes)
        instance.move_to(
            S.BACKING_OFF,
            f"{instance.reason} Starting again in {max(1.0, wait):.0f} s (crash {crashes} of {self.patience.crashes}).",
            crashes=crashes,
            retry_at=timezone.now() + timedelta(seconds=wait),
        )

    def _wait(self, instance: Instance) -> None:
        left = -self._age(instance.retry_at)
        if left <= 0:
            instance.move_to(S.PENDING, "Starting again.", retry_at=None)
        elif left < 5:
            self._soon(left)

    # Their parts --------------------------------------------------------------------------------------------------

    def _spec(self, instance: Instance) -> launch.LaunchSpec:
        served, config = instance.served, launch_config.of(instance.served)
        file = instance.file or served.file
        assert file is not None, "only what has a file is launched"
        host = config.host or self.node.address
        ports = range(config.first_port, config.last_port + 1)
        return launch.LaunchSpec(
            model_path=file.path,
            alias=served.slug,
            host=host,
            port=launch.free_port(host, self._taken_ports(), ports),
            config=config,
            slot_save_path=str(launch.slots_of(str(instance.pk))),
            projector_path=file.projector.path if file.projector else "",
        )

    def _crashed(self, instance: Instance, reason: str) -> None:
        log.warning("crashed", instance=str(instance), pid=instance.pid, reason=reason)
        instance.move_to(S.CRASHED, reason, port=None, memory_bytes=None)

    def _adopt(self, instance: Instance) -> bool:
        """Find the process that a worker spawned just before it died."""
        for found in process.with_mark(process.mark(str(instance.pk))):
            self._set(instance, pid=found.pid, pid_created=found.create_time())
            return True
        return False

    def _shortage(self, instance: Instance) -> str:
        """What is missing for this replica, in a sentence; empty when it fits."""
        needed = catalog.needed_bytes(instance.served)
        if needed is None or instance.served.gpu_layers or _has_gpu():
            # What goes to which device is the engine's to decide there.
            return ""
        loading = Instance.objects.filter(node=self.node, state=S.STARTING).select_related("served__file")
        promised = sum(catalog.needed_bytes(other.served) or 0 for other in loading)
        free = psutil.virtual_memory().available - promised
        if needed <= free:
            return ""
        return (
            f"It needs about {_gib(needed)} of memory and {_gib(max(0, free))} are free on {self.node.name}."
        )

    def _taken_ports(self) -> frozenset[int]:
        ports = Instance.objects.filter(node=self.node, port__isnull=False).values_list("port", flat=True)
        return frozenset(port for port in ports if port is not None)

    def _note_rate(self, instance: Instance) -> None:
        written = Probe.of(instance).predicted_tokens()
        if written is not None and notes.tell_written(instance.pk, written, timezone.now().timestamp()):
            events.instance_changed(instance.served_id, instance.pk)

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


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


@contextmanager
def _alone(node_name: str, wait_ms: int = 1500) -> Iterator[bool]:
    """Hold the node's lock. False when another process holds it for longer than `wait_ms`.

    A session's lock: PostgreSQL frees it when its holder dies.
    """
    key = f"reconcile:{node_name}"
    with connection.cursor() as cursor:
        try:
            with transaction.atomic():
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{wait_ms}ms"])
                cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [key])
        except OperationalError:
            yield False
            return
        try:
            yield True
        finally:
            cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [key])
