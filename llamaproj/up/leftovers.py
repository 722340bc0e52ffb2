"""Ends what a killed predecessor left running: by identity (pid and start time) or by working folder, never by name."""

import contextlib
import json
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

# psutil derives the start time from the clock, which may have been adjusted since it was written down.
_SAME_START_S = 2.0
_POLL_S = 0.02


class Record:
    """The file that says which processes belong to the `up` of a data folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, tuple[int, float]] = {}

    def add(self, name: str, pid: int) -> None:
        """Write down that `name` is now process `pid`."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._entries[name] = (pid, psutil.Process(pid).create_time())
            self._write()

    def remove(self, name: str) -> None:
        """Forget `name`: it has ended."""
        if self._entries.pop(name, None):
            self._write()

    def pids(self) -> dict[str, int]:
        """The processes of the record that still run, as the file says."""
        return {name: process.pid for name, process in self._running().items()}

    def end_running(self) -> list[str]:
        """End what a predecessor wrote down and still runs. Returns the names."""
        running = self._running()
        end(running.values())
        self._path.unlink(missing_ok=True)
        return list(running)

    def _running(self) -> dict[str, psutil.Process]:
        try:
            entries = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        found = {}
        for name, (pid, started) in entries.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if abs(process.create_time() - started) < _SAME_START_S and is_alive(process):
                    found[name] = process
        return found

    def _write(self) -> None:
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(self._entries))
        draft.replace(self._path)


def working_in(folder: Path, name: str) -> list[psutil.Process]:
    """Processes called `name` whose working folder is `folder`: servers change into their data folder."""
    return [
        process
        for process in psutil.process_iter(["name", "cwd"])
        if process.info["name"] == name and process.info["cwd"] == str(folder)
    ]


def argv(process: psutil.Process) -> list[str]:
    """What the process was started with; nothing where it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def is_alive(process: psutil.Process) -> bool:
    """True while the process does anything. One that nobody has collected yet is not alive."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(
    processes: Iterable[psutil.Process], *, signum: signal.Signals = signal.SIGTERM, grace_s: float = 5.0
) -> None:
    """Ask to stop, wait, and kill what is still alive."""
    targets = list(processes)
    for one_signal in (signum, signal.SIGKILL):
        for process in targets:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(one_signal)
        deadline = time.monotonic() + grace_s
        while (
            targets := [process for process in targets if is_alive(process)]
        ) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if not targets:
            return
