"""The least that Python can do between a client and an upstream: bytes are passed on, and nothing is known of them.

python -m benchmarks.pipe PORT UPSTREAM_PORT
"""

import asyncio
import sys
from typing import Self, cast

import uvloop

from benchmarks.child import Child, cpu_s, say
from benchmarks.environment import DATA_DIR, free_port


class Pipe:
    """Such a process, running as long as the block."""

    def __init__(self, upstream_port: int) -> None:
        self.port = free_port()
        self._upstream_port = upstream_port

    def __enter__(self) -> Self:
        log = DATA_DIR / "logs" / "pipe.log"
        self._child = Child("pipe", str(self.port), str(self._upstream_port), log=log)
        self._child.hear("listens")
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end()

    def pids(self) -> list[int]:
        """The process."""
        return [self._child.pid]

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far."""
        return {"web": cpu_s(self._child.pid)}


class _End(asyncio.Protocol):
    """One end of a pipe. Whoever reads slowly holds the other end back."""

    transport: asyncio.Transport
    other: "_End | None" = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()


class _ClientsEnd(_End):
    """The client's, which has the other one opened."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._opening = asyncio.ensure_future(self._open())

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(_End, "127.0.0.1", self._upstream_port)
        self.other, upstream.other = upstream, self
        upstream.transport.writelines(self._early)
        if self.transport.is_closing():
            upstream.transport.close()


async def _serve(port: int, upstream_port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _ClientsEnd(upstream_port), "127.0.0.1", port, backlog=2048)
    say(listens=port)
    # It ends with whoever started it.
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
