"""The next step of each instance, one function a state."""

from signal import SIGKILL, SIGTERM

import psutil
import structlog
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from llamaproj.errors import LlamaProjError
from models_admin import events, notes, usage
from models_admin.engine import diagnosis, instance_log, loading, process
from models_admin.engine.probe import Health
from models_admin.instances.launching import adopt, start
from models_admin.instances.turn import Turn, process_of, stopped
from models_admin.memory import footprint
from models_admin.models import Instance, ServedModel
from models_admin.states import InstanceState as S

log = structlog.get_logger(__name__)

_REASON_LOG_LINES = 12
_STOPPED_DRAIN_S = 30.0


def step(turn: Turn, instance: Instance) -> None:
    """Take the next step, and the one after it while states change. One instance's trouble is its own."""
    steps = {
        S.PENDING: start,
        S.STARTING: _watch_start,
        S.READY: _watch,
        S.UNREACHABLE: _come_back,
        S.DRAINING: _drain,
        S.CRASHED: _judge,
        S.BACKING_OFF: _wait,
    }
    try:
        seen: set[str] = set()
        while instance.state in steps and instance.state not in seen:
            seen.add(instance.state)
            steps[S(instance.state)](turn, instance)
    except (DatabaseError, InterfaceError):
        raise
    except Exception as error:  # whatever it is, the other instances of this machine must go on
        log.exception("a step failed", instance=str(instance), state=instance.state)
        reason = error.message if isinstance(error, LlamaProjError) else type(error).__name__
        turn.explain(instance, f"The last step failed: {reason}")
    if instance.pid:
        instance_log.trim(str(instance.pk))
    if notes.tell_log(instance.pk, instance_log.tail(str(instance.pk))):
        events.log_grown(instance.served_id, instance.pk)


def _watch_start(turn: Turn, instance: Instance) -> None:
    if instance.pid is None and not adopt(turn, instance):
        turn.crashed(instance, "It never came to life: the worker ended while starting it.", its_fault=False)
        return
    found = process_of(instance)
    if found is None:
        _ended(turn, instance)
        return
    if turn.look(instance).health is Health.OK:
        instance.move_to(
            S.READY,
            "Ready for requests.",
            ready_at=timezone.now(),
            progress=None,
            memory_bytes=found.memory_info().rss,
        )
        turn.look_again_in(0.25)
        return
    if found.status() == psutil.STATUS_STOPPED:
        # However long it may load: one that was halted doesn't.
        _silent(turn, instance, found)
        return
    file = instance.file or instance.served.file
    patience = turn.config(instance).start_timeout_s if turn.patience.start is None else turn.patience.start
    allowed = patience + (file.size_bytes if file else 0) / turn.patience.load_bytes_per_s
    # By the process's own age: a clock that was set doesn't make a load too long.
    age = process.age_s(found)
    if age > allowed:
        process.send(found, SIGKILL)
        turn.crashed(instance, f"It didn't become ready within {allowed:.0f} seconds.")
        return
    progress = loading.progress(found, instance, age)
    if progress != instance.progress:
        turn.set(instance, progress=progress)
        events.instance_changed(instance.served_id, instance.pk)
    turn.look_again_in(0.25 if age < 10 else 1.0)


def _watch(turn: Turn, instance: Instance) -> None:
    found = process_of(instance)
    if found is None:
        _ended(turn, instance)
        return
    if not instance.api_key:
        process.send(found, SIGKILL)
        turn.crashed(instance, "Its key can't be read any more, because SECRET_KEY has changed.")
        return
    if turn.look(instance).health is not Health.OK:
        _silent(turn, instance, found)
        return
    changes: dict[str, object] = {}
    if instance.unhealthy_since is not None:
        changes |= {"unhealthy_since": None, "reason": "Ready for requests."}
    if instance.crashes and turn.age(instance.ready_at) > turn.patience.ready_long:
        changes |= {"crashes": 0, "faults": 0}
    memory = found.memory_info().rss
    if abs(memory - (instance.memory_bytes or 0)) > memory / 50:
        changes["memory_bytes"] = memory
    if changes:
        turn.set(instance, **changes)
        events.instance_changed(instance.served_id, instance.pk)
    if usage.observe(instance, turn.look(instance).activity, turn.now):
        turn.set(instance, last_used_at=turn.now)
        ServedModel.objects.filter(pk=instance.served_id).update(last_used_at=turn.now)
        # Only at work does a replica touch all it needs.
        footprint.note(instance, memory, turn.now)


def _come_back(turn: Turn, instance: Instance) -> None:
    """This machine was out of reach for the others; what went on here meanwhile counts again."""
    if instance.pid is None:
        adopt(turn, instance)
    found = process_of(instance)
    if found is None:
        turn.crashed(instance, "It ended while its machine was out of reach.", its_fault=False)
    elif instance.ready_at is None:
        # Where it was in its life isn't known any more: a new one is simpler than to guess.
        process.send(found, SIGKILL)
        turn.crashed(instance, "It wasn't ready when its machine came back.", its_fault=False)
    else:
        # If it doesn't answer, it has as long to do so as any other.
        instance.move_to(S.READY, "Ready for requests again.", unhealthy_since=None, term_at=None)


def _silent(turn: Turn, instance: Instance, found: psutil.Process) -> None:
    config = turn.config(instance)
    allowed = config.health_timeout_s if turn.patience.silent is None else turn.patience.silent
    if instance.unhealthy_since is None:
        turn.set(instance, unhealthy_since=turn.now)
        turn.explain(instance, "It doesn't answer at the moment.")
    elif turn.age(instance.unhealthy_since) > allowed:
        process.send(found, SIGKILL)
        # A request may do that to a model that is well: it is worth another start, however often.
        turn.crashed(instance, f"It didn't answer for {allowed:.0f} seconds.", its_fault=False)


def _drain(turn: Turn, instance: Instance) -> None:
    if instance.pid is None:
        adopt(turn, instance)
    found = process_of(instance)
    if found is None:
        stopped(instance, "Stopped.")
        # Somebody may be waiting for its memory.
        turn.look_again_in(0.1)
        return
    if instance.term_at is None:
        age = (turn.now - instance.state_since).total_seconds()
        # A request that was routed just before the state changed has a second to arrive before one looks.
        idle = instance.ready_at is None or (age > 1.0 and turn.look(instance).is_idle)
        if idle or age > _drain_s(turn, instance):
            process.send(found, SIGTERM)
            turn.set(instance, term_at=turn.now)
    elif turn.age(instance.term_at) > turn.patience.term:
        process.send(found, SIGKILL)
    turn.look_again_in(0.3)


def _drain_s(turn: Turn, instance: Instance) -> float:
    """How long its last answers may take: not long where a person has stopped the model."""
    if turn.patience.drain is not None:
        return turn.patience.drain
    allowed = turn.config(instance).drain_timeout_s
    return allowed if instance.served.enabled else min(allowed, _STOPPED_DRAIN_S)


def _judge(turn: Turn, instance: Instance) -> None:
    """After a crash: try again later, or give up."""
    crashes = instance.crashes
    if instance.faults >= turn.patience.crashes or instance.cause in diagnosis.LASTING:
        # A known cause is shown with the lines that tell it.
        lines = [] if instance.cause else instance_log.tail(str(instance.pk), _REASON_LOG_LINES)
        last = "\n".join(lines)
        times = f"{crashes} crashes" if crashes > 1 else "one crash"
        reason = f"Given up after {times}. {instance.reason}\n{last}".strip()
        instance.move_to(S.FAILED, reason, retry_at=None)
        return
    wait = -turn.age(instance.retry_at)
    told = f"{instance.reason} Starting again in {max(1.0, wait):.0f} s (crash {crashes})."
    instance.move_to(S.BACKING_OFF, told)


def _wait(turn: Turn, instance: Instance) -> None:
    left = -turn.age(instance.retry_at)
    # A clock that was set back must not make it wait for hours.
    if left <= 0 or left > turn.patience.backoff_most * 1.25:
        # By now another machine may be the better place.
        instance.move_to(S.PENDING, "Starting again.", retry_at=None, node=None, file=None)
        turn.look_again_in(0.05)
    elif left < 5:
        turn.look_again_in(left)


def _ended(turn: Turn, instance: Instance) -> None:
    """Its process is gone: the way it ended and what it last wrote may tell why."""
    ending = process.ending_of(instance.pid)
    found = diagnosis.of(
        instance_log.tail(str(instance.pk)), exit_status=ending.status, memory_kills=ending.memory_kills
    )
    if found is None:
        turn.crashed(instance, ending.words, its_fault=ending.by_itself)
    else:
        its_fault = found.cause != diagnosis.Cause.NO_FILE
        turn.crashed(instance, f"{ending.words} {found.summary}", found.cause, its_fault=its_fault)
