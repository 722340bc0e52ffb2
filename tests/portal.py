"""A portal that really runs: `llamaproj up` in its own process, on its own data folder and port."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from llamaproj import env
from llamaproj.up.leftovers import Record, is_alive

USERNAME = "admin"
DEMO_MODEL = "smollm2-135m-instruct"
PASSWORD = "a-password-of-the-tests"
_GONE_S = 10


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def runs(pid: int) -> bool:
    """Whether a process with this pid lives; one that ends meanwhile doesn't."""
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def new_portal(**variables: str) -> Iterator["Portal"]:
    """A portal on a new data folder; at the end nothing of it is left.

    Not in pytest's folders: those are closed to the user that PostgreSQL runs as under root.
    """
    folder = Path(tempfile.mkdtemp(prefix="llamaproj-portal-"))
    portal = Portal(folder / "data", **variables)
    try:
        yield portal
    finally:
        portal.close()
        shutil.rmtree(folder, ignore_errors=True)


class Portal:
    """`up` on `data_dir`. Not started by being made: `start()`, then `wait_ready()`."""

    def __init__(self, data_dir: Path, **variables: str) -> None:
        self.data_dir = data_dir
        self.port = int(variables.get("PORT") or free_port())
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.username, self.password = USERNAME, PASSWORD
        self.env = {
            **os.environ,
            "DATA_DIR": str(data_dir),
            "PORT": str(self.port),
            "ADMIN_USERNAME": USERNAME,
            "ADMIN_PASSWORD": PASSWORD,
            "SECRET_KEY": "",
            **variables,
        }
        self.command: tuple[str, ...] = ("up",)
        self.log = data_dir / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Portal":
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llamaproj.cli", *self.command],
                cwd=env.BASE_DIR,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def refuse(self, timeout: float = 90) -> tuple[int, str]:
        """Start where that must fail. Returns the exit status and what was printed."""
        self.start()
        assert self.process is not None
        status = self.process.wait(timeout)
        self.process = None
        return status, self.output()

    def wait_ready(self, timeout: float = 150, *, models: int = 0) -> dict[str, Any]:
        """Wait until /readyz says yes and counts that many ready models. Returns what it says."""
        deadline = time.monotonic() + timeout
        report: dict[str, Any] = {}
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(
                    f"{self.command[0]} ended with status {self.process.returncode}:\n{self.output()}"
                )
            try:
                answer = httpx.get(f"{self.base_url}/readyz", timeout=5)
                report = answer.json()
                if answer.status_code == 200 and report["models"].get("ready", 0) >= models:
                    return report
            except (httpx.HTTPError, json.JSONDecodeError):
                pass
            time.sleep(0.2)
        raise AssertionError(f"not ready after {timeout} s, /readyz says {report}:\n{self.output()}")

    def ready_models(self) -> int:
        """How many models are ready by now."""
        [(count,)] = self.query("SELECT count(*) FROM models_admin_instance WHERE state = 'ready'")
        return int(count)

    def output(self, lines: int = 80) -> str:
        """The last lines of what `up` printed."""
        return (
            "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""
        )

    def wait_output(self, text: str, timeout: float = 120) -> None:
        """Wait until `up` has printed `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.output(10_000):
            assert time.monotonic() < deadline, f"{text!r} was not printed:\n{self.output()}"
            time.sleep(0.05)

    @property
    def pids(self) -> dict[str, int]:
        """The processes under the supervisor, by name: web, generator, node, worker, beat, postgres, valkey."""
        return Record(self.data_dir / "run" / "processes.json").pids()

    def wait_pids(self, names: set[str], timeout: float = 120) -> dict[str, int]:
        """Wait until exactly these processes run; some start only when the first answer. Returns their pids."""
        deadline = time.monotonic() + timeout
        while (pids := self.pids).keys() != names:
            assert time.monotonic() < deadline, f"{set(pids)} run instead of {names}:\n{self.output()}"
            time.sleep(0.1)
        return pids

    def llama_servers(self) -> list[int]:
        """The pids of the running instances, as the database says."""
        rows = self.query(
            "SELECT pid FROM models_admin_instance WHERE pid IS NOT NULL AND state <> 'stopped'"
        )
        return [row[0] for row in rows if runs(row[0])]

    def wait_llama_servers(self, count: int, timeout: float = 120) -> list[int]:
        """Wait until that many run, whatever the rows of a killed predecessor say. Returns their pids."""
        deadline = time.monotonic() + timeout
        while len(pids := self.llama_servers()) != count:
            assert time.monotonic() < deadline, f"{pids} run instead of {count}:\n{self.output()}"
            time.sleep(0.1)
        return pids

    def processes(self) -> list[psutil.Process]:
        """Everything that runs with this data folder, whoever started it."""
        marker = f"DATA_DIR={self.data_dir}"
        found = []
        for process in psutil.process_iter():
            try:
                mine = any(f"{key}={value}" == marker for key, value in process.environ().items())
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if mine and is_alive(process):
                found.append(process)
        return found

    @property
    def database_url(self) -> str:
        sockets = env.socket_dir(self.data_dir)
        return self.env.get("DATABASE_URL") or f"postgresql://postgres@/llamaproj?host={sockets}"

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows of the portal's database."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def manage(self, *arguments: str, timeout: float = 120) -> str:
        """Run a management command of this portal. Returns what it printed."""
        result = subprocess.run(
            [sys.executable, "-m", "llamaproj.cli", *arguments],
            cwd=env.BASE_DIR,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == 0, (
            f"{arguments} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
        )
        return result.stdout

    def stop(self, signum: signal.Signals = signal.SIGINT, timeout: float = 60) -> int:
        """Stop as a person does. Returns the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signum)
        status = self.process.wait(timeout)
        self.process = None
        return status

    def kill(self) -> None:
        """`kill -9` the supervisor."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def kill_everything(self) -> None:
        """`kill -9` whatever runs with this data folder, and wait until it is gone."""
        found = self.processes()
        for process in found:
            # Who loses its parent may have ended by itself meanwhile.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            self.process.wait()
            self.process = None
        psutil.wait_procs(found, timeout=_GONE_S)

    def close(self) -> None:
        """Stop, however things stand, and leave nothing running."""
        try:
            self.stop()
        finally:
            self.kill_everything()
