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
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Program:
    """What to run, as whom, and how it likes to be stopped.

    With `log_file` its output is appended there; otherwise the supervisor prints it with the program's name in front.
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


def _die_with_parent(signum: int) -> Callable[[], None] | None:
    """Run in the child after it changed its user, because changing the user clears the setting."""
    if _LIBC is None:
        return None
    return functools.partial(_LIBC.prctl, _PR_SET_PDEATHSIG, signum)
