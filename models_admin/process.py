"""Processes by their identity: pid and start time. A stranger that was given an old pid is never touched."""

import os
import signal
import subprocess
from collections.abc import Iterator

import psutil

from llamaproj import env

# The start time is computed from the boot time, which moves a little when the clock is set.
_SAME_START_S = 1.5

# Processes this worker spawned itself: their ends must be collected. Adopted ones are init's children.
_children: dict[int, subprocess.Popen[bytes]] = {}


def keep(child: subprocess.Popen[bytes]) -> float:
    """Remember a process just spawned. Returns its start time."""
    _children[child.pid] = child
    try:
        return psutil.Process(child.pid).create_time()
    except psutil.NoSuchProcess:
        # It has ended and been collected already; no process will have this start.
        return 0.0


def find(pid: int | None, created: float | None) -> psutil.Process | None:
    """The living process with this identity."""
    if pid is None or created is None:
        return None
    _collect(pid)
    try:
        found = psutil.Process(pid)
        if abs(found.create_time() - created) > _SAME_START_S or found.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return found


def ending_of(pid: int | None) -> str:
    """How a process ended, in words; for an adopted one nobody knows."""
    child = _children.pop(pid, None) if pid is not None else None
    code = child.poll() if child else None
    if code is None:
        return "The process has ended."
    if code < 0:
        return f"The process was ended by {_signal_name(-code)}."
    return f"The process ended with status {code}."


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


def mark_of_all() -> dict[str, str]:
    """What all llama-servers of this portal on this machine have in common."""
    return {"LLAMAPROJ_SPAWNED_FOR": str(env.DATA_DIR)}


def with_mark(mark: dict[str, str]) -> Iterator[psutil.Process]:
    """Living processes whose environment holds all of `mark`, heads of their group only."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if mark.items() <= environment.items() and os.getpgid(process.pid) == process.pid:
                yield process
        except (psutil.Error, OSError):
            continue


def _collect(pid: int) -> None:
    child = _children.get(pid)
    if child is not None:
        child.poll()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
