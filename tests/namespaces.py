"""Two machines and the cable between them, on one: network namespaces.

    portal 10.77.1.2 ── 10.77.1.1 router 10.77.2.1 ── 10.77.2.2 node

Cutting takes the router's end of the node's cable down: both machines keep their own addresses, packets between them
are lost without a word, as with a pulled cable. Needs root and `ip`.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamaproj.up.postgres import Postgres
from llamaproj.up.program import Program
from llamaproj.up.valkey import Valkey
from tests.portal import Portal

PORTAL, NODE = "10.77.1.2", "10.77.2.2"
_NETWORK = "10.77.0.0/16"
_CLONE_NEWNET = 0x40000000
_STOP_S = 20


@dataclass(frozen=True)
class Namespace:
    """One machine's network."""

    name: str

    def ip(self, command: str) -> None:
        """Run `ip` there."""
        _ip(f"-n {self.name} {command}")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread's new sockets and processes belong to the namespace meanwhile."""
        with (
            Path("/proc/thread-self/ns/net").open() as outside,
            Path("/run/netns", self.name).open() as inside,
        ):
            _setns(inside.fileno())
            try:
                yield
            finally:
                _setns(outside.fileno())


@dataclass(frozen=True)
class Cable:
    """Two machines and what is between them."""

    portal: Namespace
    node: Namespace
    router: Namespace

    def cut(self) -> None:
        """Lose every packet between the two."""
        self.router.ip("link set to-node down")

    def mend(self) -> None:
        """Let them through again."""
        self.router.ip("link set to-node up")


@contextlib.contextmanager
def new_cable() -> Iterator[Cable]:
    """Make the namespaces, or skip the test loudly where that can't be done."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and `ip`: two machines were not tried")
    cable = Cable(*(Namespace(f"llamaproj-{os.getpid()}-{name}") for name in ("portal", "node", "router")))
    all_three = (cable.portal, cable.node, cable.router)
    try:
        try:
            for namespace in all_three:
                _ip(f"netns add {namespace.name}")
                namespace.ip("link set lo up")
            for number, (machine, end) in enumerate(
                ((cable.portal, "to-portal"), (cable.node, "to-node")), 1
            ):
                cable.router.ip(f"link add {end} type veth peer name outside netns {machine.name}")
                cable.router.ip(f"addr add 10.77.{number}.1/24 dev {end}")
                cable.router.ip(f"link set {end} up")
                machine.ip(f"addr add 10.77.{number}.2/24 dev outside")
                machine.ip("link set outside up")
                machine.ip(f"route add default via 10.77.{number}.1")
        except subprocess.CalledProcessError as error:
            pytest.skip(
                f"network namespaces can't be made here ({error.stderr.strip()}): two machines were not tried"
            )
        with cable.router.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        yield cable
    finally:
        for namespace in all_three:
            # One that wasn't made is no trouble.
            subprocess.run(["ip", "netns", "del", namespace.name], capture_output=True, check=False)


class Services:
    """PostgreSQL and Valkey of this test alone, which listen at the portal's address."""

    def __init__(self, folder: Path) -> None:
        sockets = folder / "run"
        sockets.mkdir(parents=True)
        self.postgres = Postgres(
            data=folder / "postgres", sockets=sockets, log_file=folder / "postgres.log", durable=False
        )
        self.valkey = Valkey(
            data=folder / "valkey",
            socket=sockets / "valkey.sock",
            log_file=folder / "valkey.log",
            durable=False,
        )
        self._hba = folder / "postgres" / "pg_hba.conf"
        self._running: list[tuple[Program, subprocess.Popen[bytes]]] = []
        self.variables = {
            "DATABASE_URL": f"postgresql://postgres@{PORTAL}:5432/llamaproj",
            "REDIS_URL": f"redis://{PORTAL}:6379/0",
        }

    def start(self) -> None:
        """Start both in this thread's namespace."""
        for service, options in (
            (self.postgres, ["-c", f"listen_addresses={PORTAL}"]),
            (self.valkey, ["--port", "6379", "--bind", PORTAL, "--protected-mode", "no"]),
        ):
            service.prepare()
            if service is self.postgres:
                with self._hba.open("a") as rules:
                    rules.write(f"host all all {_NETWORK} trust\n")
            program = service.program()
            log = program.open_log()
            process = subprocess.Popen(
                [*program.argv, *options], stdout=log, stderr=log, **program.popen_options()
            )
            os.close(log)
            self._running.append((program, process))

    def is_ready(self) -> bool:
        """True when both answer."""
        return self.postgres.is_ready() and self.valkey.is_ready()

    def stop(self) -> None:
        """Stop both."""
        for program, process in reversed(self._running):
            process.send_signal(program.stop_signal)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()


class NodeProcess(Portal):
    """`llamaproj node` on its own data folder."""

    def __init__(self, name: str, data_dir: Path, **variables: str) -> None:
        super().__init__(data_dir, **variables)
        self.command = ("node", "--name", name)


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
