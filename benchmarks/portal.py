"""A portal to measure, alone on its machine's sockets: embedded services, the web process, what else is asked for."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx
import psutil

from benchmarks.child import cpu_s
from benchmarks.environment import DATA_DIR, PORT
from llamaproj import env
from llamaproj.up import preflight, processes
from llamaproj.up.postgres import Postgres
from llamaproj.up.program import Program
from llamaproj.up.valkey import Valkey

_READY_S = 120
_STOP_S = 10
URL = f"http://127.0.0.1:{PORT}"


class Portal:
    """Running as long as the block; its folder is gone afterwards."""

    def __init__(self, *parts: str) -> None:
        self._parts = parts or ("web", "generator")
        self._running: list[tuple[Program, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            print(self.last_words(), file=sys.stderr)
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program, process in reversed(self._running):
            process.send_signal(program.stop_signal)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        shutil.rmtree(DATA_DIR, ignore_errors=True)

    def _start(self) -> None:
        preflight.make_folders()
        run, logs = env.socket_dir(), DATA_DIR / "logs"
        # Postgres and Valkey write as they do in a deployment.
        postgres = Postgres(data=DATA_DIR / "postgres", sockets=run, log_file=logs / "postgres.log")
        valkey = Valkey(data=DATA_DIR / "valkey", socket=run / "valkey.sock", log_file=logs / "valkey.log")
        for service in (postgres, valkey):
            service.prepare()
            self._run(service.program())
        _wait_for(lambda: postgres.is_ready() and valkey.is_ready(), "PostgreSQL and Valkey")
        postgres.create_database("llamaproj")
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        for program in (*processes.first(), *processes.later()):
            if program.name in self._parts:
                self._run(program)
        _wait_for(_web_answers, "the web process")

    def _run(self, program: Program) -> None:
        log = os.open(self.log(program.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        process = subprocess.Popen(program.argv, stdout=log, stderr=log, **program.popen_options())
        os.close(log)
        self._running.append((program, process))

    def log(self, name: str) -> Path:
        """Where a process writes what it has to say."""
        return DATA_DIR / "logs" / f"{name}.log"

    def pid(self, name: str) -> int:
        """Of one of its processes."""
        return next(process.pid for program, process in self._running if program.name == name)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far of the processes, by name; PostgreSQL's with those of its sessions."""
        used = {program.name: cpu_s(process.pid) for program, process in self._running}
        for session in psutil.Process(self.pid("postgres")).children(recursive=True):
            used["postgres"] += cpu_s(session.pid)
        return used

    def last_words(self) -> str:
        """The ends of the logs, for whoever has to find out what went wrong."""
        ends = [
            f"{path.name}: {line}"
            for path in sorted((DATA_DIR / "logs").glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()[-12:]
        ]
        return "\n".join(ends)


def _web_answers() -> bool:
    try:
        return httpx.get(f"{URL}/healthz", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def _wait_for(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _READY_S
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} didn't start in {_READY_S} s")
        time.sleep(0.02)
