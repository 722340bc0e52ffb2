"""Processes of a benchmark: they are told what to do and answer, in lines of JSON."""

import asyncio
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

_MAX_LINE_BYTES = 2**26


class Silent(RuntimeError):
    """A process of the benchmark doesn't answer."""


class Child:
    """A module of this package, running as a process of its own."""

    def __init__(self, module: str, *arguments: str, log: Path) -> None:
        self.name = module
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.{module}", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """For the clock of its CPU time."""
        return self.process.pid

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def tell(self, **order: object) -> None:
        """Give an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, key: str, timeout_s: float = 60) -> Any:
        """The value of the next answer, which has to be about `key`. Raises `Silent`."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise Silent(f"{self.name} said nothing about {key!r} in {timeout_s:.0f} s") from None
        if not line:
            raise Silent(f"{self.name} ended")
        answer = json.loads(line)
        if key not in answer:
            raise Silent(f"{self.name} was asked for {key!r} and said {line[:200]!r}")
        return answer[key]

    def end(self) -> None:
        """It ends when it is told nothing more."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


async def orders() -> AsyncIterator[dict[str, Any]]:
    """In a child: what it is told, until nothing more will come."""
    reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )
    while line := await reader.readline():
        yield json.loads(line)


def say(**answer: object) -> None:
    """In a child: an answer."""
    print(json.dumps(answer), flush=True)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, from its own clock: psutil and /proc count in hundredths of a second."""
    return time.clock_gettime((~pid << 3) | 2)
