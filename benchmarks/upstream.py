"""A llama-server that costs next to nothing and writes tokens at a steady pace, each in a write of its own.

It speaks streamed /v1/chat/completions only. The last message of a request is JSON: `{"gate", "tokens"}`. Answers wait
at their gate, headers and role already sent, until as many as the conductor says are there; then they start together,
their phases spread evenly, and the conductor is told when the first token is due and when the last one was sent.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import cast

import uvloop

from benchmarks.child import orders, say
from benchmarks.stamps import digest, stamp

INTERVAL_S = 0.02
PARAGRAPH_TOKENS = 50
_NOTICE_S = 0.4
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Access-Control-Allow-Origin: \r\nServer: llama.cpp\r\n\r\n"
)
_BEGIN = b'data: {"choices":[{"finish_reason":'
_TAIL = (
    b'}}],"created":1795000000,"id":"chatcmpl-5zX0fJ2m9QeVb7sLkT4uYw8RnHcGdAoP","model":"fast",'
    b'"system_fingerprint":"b9999-0123456789","object":"chat.completion.chunk"'
)


def _event(reason: bytes, delta: bytes, more: bytes = b"") -> bytes:
    return _chunk(_BEGIN + reason + b',"index":0,"delta":{' + delta + _TAIL + more + b"}\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass
class Gate:
    """Answers that start together."""

    of: int = 0
    waiting: list["Answer"] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)


_gates: dict[str, Gate] = {}


class Answer(asyncio.Protocol):
    """One connection; it carries one answer after the other."""

    def __init__(self) -> None:
        self._data = b""
        self._sent: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].split(b":")[1])
        if len(body) >= length:
            self._data = body[length:]
            self._begin(json.loads(json.loads(body[:length])["messages"][-1]["content"]))

    def _begin(self, wish: dict[str, object]) -> None:
        self._gate, self._count = _gates.setdefault(str(wish["gate"]), Gate()), int(str(wish["tokens"]))
        self._sent = []
        self._transport.write(_HEAD + _event(b"null", b'"role":"assistant","content":null'))
        self._gate.waiting.append(self)
        _start_if_full(self._gate)

    def start(self, due: float) -> None:
        """Send the first token at `due`, the others at the pace."""
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._loop.call_at(due, self._next)

    def _next(self) -> None:
        if self._transport.is_closing():
            self._finish("the client went away")
            return
        token = stamp(time.monotonic())
        self._sent.append(token)
        done = len(self._sent)
        space = b"\\n\\n" if done % PARAGRAPH_TOKENS == 0 else b" "
        self._transport.write(_event(b"null", b'"content":"' + token.encode() + space + b'"'))
        if done < self._count:
            self._loop.call_at(self._due + done * INTERVAL_S, self._next)
        else:
            self._end()

    def _end(self) -> None:
        decode_ms = self._count * INTERVAL_S * 1000
        timings = {
            "cache_n": 0,
            "prompt_n": 20,
            "prompt_ms": 1.0,
            "predicted_n": self._count,
            "predicted_ms": decode_ms,
            "predicted_per_second": self._count / decode_ms * 1000,
        }
        last = _event(b'"stop"', b"", b',"timings":' + json.dumps(timings).encode())
        self._transport.write(last + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self._finish(digest(self._sent))

    def _finish(self, result: str) -> None:
        self._gate.digests.append(result)
        if len(self._gate.digests) == self._gate.of:
            say(ended=self._gate.digests)


def _start_if_full(gate: Gate) -> None:
    if gate.of and len(gate.waiting) == gate.of:
        due = time.monotonic() + _NOTICE_S
        say(due=due)
        for number, answer in enumerate(gate.waiting):
            answer.start(due + number * INTERVAL_S / gate.of)


async def _main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", port, backlog=1024)
    say(listening=port)
    async for order in orders():
        gate = _gates.setdefault(order["gate"], Gate())
        gate.of = order["of"]
        _start_if_full(gate)
    server.close()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))
