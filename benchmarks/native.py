"""The two programs of a benchmark that must cost next to nothing: written in C, compiled when they are needed."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks.environment import DATA_DIR, free_port

_SOURCES = Path(__file__).parent
_READY_S = 5
_GRACE_S = 5


class NoCompiler(RuntimeError):
    """This benchmark needs a C compiler (gcc or cc) for its upstream and its clients."""


def build(name: str) -> Path:
    """The program `name`, compiled. Raises `NoCompiler`."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NoCompiler(NoCompiler.__doc__)
    program = DATA_DIR / name
    subprocess.run(
        [compiler, "-O2", "-std=gnu11", "-o", str(program), str(_SOURCES / f"{name}.c")], check=True
    )
    return program


def _free_ports(count: int) -> int:
    """The first of so many that nobody listens on now."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


class Upstream:
    """The fast llama-servers, running as long as the block; they are one program at several ports."""

    def __init__(self, replicas: int) -> None:
        self.port = _free_ports(replicas)
        self.urls = [f"http://127.0.0.1:{self.port + number}" for number in range(replicas)]
        self.url = self.urls[0]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([str(build("fast_upstream")), str(self.port), str(len(self.urls))])
        deadline = time.monotonic() + _READY_S
        while not self._is_healthy():
            if time.monotonic() > deadline:
                raise RuntimeError("the upstream doesn't answer")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    def gone(self) -> dict[int, int]:
        """When each client that went away was missed: by the tag of its request, in ns of the monotonic clock."""
        return dict(httpx.get(f"{self.url}/gone", timeout=5).json())


@dataclass
class Report:
    """What the clients measured; times in milliseconds as (p50, p99, most)."""

    first_ms: tuple[float, float, float]
    delay_ms: tuple[float, float, float]
    wall_s: float
    chunks: int
    answers: int
    failed: int
    complaint: str
    left: dict[int, int] = field(default_factory=dict)


class Clients:
    """Compiled once, run for every measurement."""

    def __init__(self) -> None:
        self._program = build("load")

    def run(
        self,
        port: int,
        key: str,
        model: str,
        wish: Mapping[str, int],
        when_streaming: Callable[[], None] = lambda: None,
    ) -> Report:
        """Ask at `port` as `load.c` says; `when_streaming` is called once every client has had a token."""
        wishes = [f"{name}={value}" for name, value in wish.items()]
        process = subprocess.Popen(
            [str(self._program), str(port), f"key={key}", f"model={model}", *wishes], stdout=subprocess.PIPE
        )
        left: dict[int, int] = {}
        said: dict[str, Any] = {}
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said = json.loads(line)
                if "streaming" in said:
                    when_streaming()
                elif "left" in said:
                    tag, at = said["left"]
                    left[tag] = at
        finally:
            process.kill()
            process.wait(_GRACE_S)
        if "delay_us" not in said:
            raise RuntimeError(f"the clients of {wishes} ended without a word")
        first, delay = (_milliseconds(said[name]) for name in ("first_us", "delay_us"))
        return Report(
            first,
            delay,
            said["wall_s"],
            said["chunks"],
            said["answers"],
            said["failed"],
            said["complaint"],
            left,
        )


def _milliseconds(us: list[float]) -> tuple[float, float, float]:
    p50, p99, most = (value / 1000 for value in us)
    return p50, p99, most
