"""Processes by their identity: pid and the mark they were spawned with. A stranger that was given an old pid is never
touched."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from llamaproj import env

_ENDING_S = 1.0
_LOOK_EVERY_S = 0.005
# Processes this worker spawned itself: their ends must be collected. Adopted ones are init's children.
_children: dict[int, subprocess.Popen[bytes]] = {}
# How often the kernel had ended a process for want of memory when each of them was spawned.
_kills_before: dict[int, int] = {}
_VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True)
class Ending:
    """How a process ended. `status`: as `subprocess` has it, None where nobody knows: for an adopted one.

    `memory_kills`: how many processes of this machine the kernel has ended for want of memory since this one was
    spawned; None where it doesn't say.
    """

    status: int | None = None
    memory_kills: int | None = None

    @property
    def by_itself(self) -> bool:
        """True where it is known that nobody ended it from outside; not so of an adopted one, whose status is lost."""
        return self.status is not None and self.status not in {-signal.SIGKILL, -signal.SIGTERM}

    @property
    def words(self) -> str:
        """A sentence for people."""
        if self.status is None:
            return "The process has ended."
        if self.status < 0:
            return f"The process was ended by {_signal_name(-self.status)}."
        return f"The process ended with status {self.status}."


def keep(child: subprocess.Popen[bytes]) -> float:
    """Remember a process just spawned. Returns its start time."""
    _children[child.pid] = child
    if (kills := _memory_kills()) is not None:
        _kills_before[child.pid] = kills
    try:
        return psutil.Process(child.pid).create_time()
    except psutil.NoSuchProcess:
        # It has ended and been collected already; no process will have this start.
        return 0.0


def find(pid: int | None, mark: dict[str, str]) -> psutil.Process | None:
    """The living process with this pid, if it carries `mark` in its environment.

    Start times are no identity: they are told by the clock, which may be set while a process runs.
    """
    if pid is None:
        return None
    _settle(pid)
    try:
        found = psutil.Process(pid)
        return found if found.status() != psutil.STATUS_ZOMBIE and _has(found, mark) else None
    except psutil.NoSuchProcess:
        return None


def age_s(process: psutil.Process) -> float:
    """Seconds since the process started, whatever was done to the clock meanwhile (Linux; elsewhere by the clock)."""
    try:
        # Field 22 of proc_pid_stat(5), in ticks since the boot; what stands in brackets may hold spaces.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError):
        return max(0.0, time.time() - process.create_time())


def ending_of(pid: int | None) -> Ending:
    """How a process ended; asked once, as it is forgotten then."""
    child = _children.get(pid) if pid is not None else None
    if child is None:
        return Ending()
    try:
        # One that is just ending has lost its memory, and so its mark, a moment before its status can be had.
        status = child.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        return Ending()
    del _children[child.pid]
    before, now = _kills_before.pop(child.pid, None), _memory_kills()
    return Ending(status, None if before is None or now is None else now - before)


def send(process: psutil.Process, signum: signal.Signals) -> None:
    """Signal the process and, where it leads one, its group (a wrapper script's server among them)."""
    try:
        if not process.is_running():
            return
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return


def mark(instance_id: str) -> dict[str, str]:
    """What tells an instance's process from any other, whoever lost its pid."""
    return {"LLAMAPROJ_INSTANCE": instance_id} | mark_of_all()


def mark_in(process: psutil.Process) -> str:
    """The id of the instance that the process was spawned for; empty where it has none or is gone."""
    try:
        return process.environ().get("LLAMAPROJ_INSTANCE", "")
    except (psutil.Error, OSError):
        return ""


def mark_of_all() -> dict[str, str]:
    """What all llama-servers of this portal on this machine have in common."""
    return {"LLAMAPROJ_SPAWNED_FOR": str(env.DATA_DIR)}


def with_mark(mark: dict[str, str]) -> Iterator[psutil.Process]:
    """Living processes whose environment holds all of `mark`, heads of their group only."""
    for process in psutil.process_iter():
        try:
            if _has(process, mark) and os.getpgid(process.pid) == process.pid:
                yield process
        except (psutil.Error, OSError):
            continue


def _has(process: psutil.Process, mark: dict[str, str]) -> bool:
    try:
        return mark.items() <= process.environ().items()
    except (psutil.AccessDenied, psutil.ZombieProcess, OSError):
        return False


def _settle(pid: int) -> None:
    """Collect a child that has ended. One that is just becoming its program, or just ending, has no environment for a
    moment, so it can't be told what it is."""
    child = _children.get(pid)
    if child is None:
        return
    deadline = time.monotonic() + _ENDING_S
    while child.poll() is None and not _has_environment(pid) and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)


def _has_environment(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).environ())
    except (psutil.Error, OSError):
        return False


def _memory_kills() -> int | None:
    """Linux's counter of processes ended for want of memory, in any control group."""
    try:
        lines = _VMSTAT.read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
    except (OSError, ValueError, IndexError):
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
