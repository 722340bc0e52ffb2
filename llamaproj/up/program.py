"""One program that the supervisor runs."""

import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
# Weeks of what PostgreSQL and Valkey say; of a flood, its end.
_MOST_LOG_BYTES = 10 * 1024 * 1024
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Program:
    """What to run, as whom, and how it likes to be stopped.

    With `log_file` its output is appended there, and the file kept short; otherwise the supervisor prints it with the
    program's name in front.
    """

    name: str
    argv: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 3.0
    log_file: Path | None = None

    def popen_options(self) -> dict[str, Any]:
        """Options for `subprocess.Popen` and asyncio's counterpart.

        The program gets its own session, so Ctrl-C in the terminal reaches only the supervisor, which then stops
        programs in order; and it gets its stop signal if the supervisor is killed (Linux only).
        """
        options: dict[str, Any] = {
            "env": os.environ | self.env,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
            "preexec_fn": _die_with_parent(self.stop_signal),
        }
        if self.user:
            options |= {"user": self.user, "group": self.user, "extra_groups": []}
        return options

    def open_log(self) -> int:
        """A descriptor that appends to `log_file`; the caller closes it."""
        if self.log_file is None:
            raise ValueError(f"{self.name} has no log file")
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def trim_log(self) -> None:
        """Once `log_file` is too large, keep its end as `.1` and go on with an empty one.

        The program holds the file open, so it can't be renamed; since it appends, it goes on at the new end. What it
        writes between the two steps is lost.
        """
        if self.log_file is None:
            return
        older = self.log_file.with_name(f"{self.log_file.name}.1")
        try:
            if self.log_file.stat().st_size <= _MOST_LOG_BYTES:
                return
            older.touch(mode=0o600)
            with self.log_file.open("r+b") as file:
                file.seek(-_MOST_LOG_BYTES, os.SEEK_END)
                # From the first whole line on.
                older.write_bytes(file.read().partition(b"\n")[2])
                file.truncate(0)
        except OSError:
            # A full disk: it is tried again in a moment.
            return


def _die_with_parent(signum: int) -> Callable[[], None] | None:
    """Run in the child after it changed its user, because changing the user clears the setting."""
    if _LIBC is None:
        return None
    return functools.partial(_LIBC.prctl, _PR_SET_PDEATHSIG, signum)
