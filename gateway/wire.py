"""HTTP/1.1 to a llama-server of ours, as little of it as that takes: one question at a time on a kept connection.

A general client pays at each token for what llama-server never does: redirects, cookies, proxies, compression, TLS.
What is read slower than it is written is held back at the socket. An answer that is closed before its end is cut off,
and llama-server frees the slot. All errors are `OSError`s.
"""

import asyncio
import socket
import weakref
from collections import defaultdict
from contextlib import suppress
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

import httptools

# What is read at once; and what may wait until somebody takes it before reading stops.
_READ_BYTES = 64 * 1024
_MOST_WAITING_BYTES = 64 * 1024
_CONNECT_S = 3.0
# How long the last bytes of an answer may take that says itself that it has ended.
_LINGER_S = 1.0
# An idle connection keeps one of llama-server's few threads waiting: few are kept, and not for long.
_MOST_IDLE, _IDLE_S = 2, 2.0
# A machine that was cut off says nothing by itself: its sockets are probed, and given up after so many seconds.
_PROBE_AFTER_S, _PROBE_EVERY_S, _PROBES, _GIVE_UP_S = 5, 2, 3, 10

_Place = tuple[str, int]
_Idle = defaultdict[_Place, "list[_Wire]"]
_idle: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Idle]" = weakref.WeakKeyDictionary()
# Whatever is read is parsed in the same step, so all connections read into the same bytes.
_buffer = memoryview(bytearray(_READ_BYTES))


async def post(url: str, body: bytes, authorization: str, silence_s: float) -> "Answer":
    """Ask, and return once the head of the answer is here. Silence longer than `silence_s` is an error, also later.

    Whoever gets the answer closes it.
    """
    place, netloc, path = _split(url)
    request = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b" % (
        path,
        netloc,
        len(body),
        b"authorization: %b\r\n" % authorization.encode("latin-1") if authorization else b"",
        body,
    )  # fmt: skip
    idle = _idle_at(asyncio.get_running_loop(), place)
    while idle:
        answer = idle.pop().ask(request, silence_s)
        try:
            return await answer.head()
        except ConnectionError:
            # The server closed a connection that nobody used in the same moment: it hasn't read the question.
            if answer.status:
                raise
    wire = await _connect(place)
    return await wire.ask(request, silence_s).head()


async def close_idle() -> None:
    """Close the running loop's connections that nobody uses, at the end of a process."""
    places = _idle.pop(asyncio.get_running_loop(), None)
    for wires in list(places.values()) if places else ():
        for wire in list(wires):
            wire.cut()


def probe(connected: socket.socket) -> None:
    """Have a socket notice the silence of its peer's machine, whether it waits for an answer or for its own words to
    arrive. Not every system has every one of these options."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _PROBE_AFTER_S),
        ("TCP_KEEPINTVL", _PROBE_EVERY_S),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", _GIVE_UP_S * 1000),
    ):
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _idle_at(loop: asyncio.AbstractEventLoop, place: _Place) -> "list[_Wire]":
    return _idle.setdefault(loop, defaultdict(list))[place]


async def _connect(place: _Place) -> "_Wire":
    async with asyncio.timeout(_CONNECT_S):
        _, wire = await asyncio.get_running_loop().create_connection(lambda: _Wire(place), *place)
    return wire


@lru_cache(maxsize=4096)
def _split(url: str) -> tuple[_Place, bytes, bytes]:
    parts = urlsplit(url)
    return (parts.hostname or "", parts.port or 80), parts.netloc.encode(), parts.path.encode()


class Answer:
    """One answer, as it comes. `status` is 0 until its head is here."""

    def __init__(self, wire: "_Wire", silence_s: float) -> None:
        self.status = 0
        self.silence_s = silence_s
        self._wire = wire
        self._chunks: list[bytes] = []
        self._size = 0
        self._is_complete = False
        self._error: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> "Answer":
        """Itself, once its status is here."""
        try:
            while not self.status:
                await self._news()
        except BaseException:
            self.close()
            raise
        return self

    async def readany(self) -> bytes:
        """What has come; empty at the end."""
        while not self._chunks:
            if self._is_complete:
                return b""
            await self._news()
        chunks, self._chunks, self._size = self._chunks, [], 0
        self._wire.go_on()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def close(self) -> None:
        """No more is wanted. What isn't complete is cut off."""
        if not self._is_complete:
            self._wire.cut()

    def release(self) -> None:
        """No more is wanted, and no more will come but its formal end, after which the connection may be used again."""
        if not self._is_complete:
            self._wire.linger()

    def _news(self) -> "asyncio.Future[None]":
        """Done when something has changed. Raises what ended the answer."""
        if self._error is not None:
            raise self._error
        self._waiter = self._wire.loop.create_future()
        return self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # From the wire ----------------------------------------------------------------------------------------------------

    def begin(self, status: int) -> None:
        """The head is complete."""
        self.status = status
        self._wake()

    def take(self, body: bytes) -> bool:
        """A part of the body; whether there is room for more."""
        self._chunks.append(body)
        self._size += len(body)
        self._wake()
        return self._size < _MOST_WAITING_BYTES

    def end(self, error: OSError | None = None) -> None:
        """There is no more, or there should be."""
        if not self._is_complete and self._error is None:
            self._is_complete, self._error = error is None, error
            self._wake()


class _Wire(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self, place: _Place) -> None:
        self._place = place
        self.loop = asyncio.get_running_loop()
        self._answer: Answer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._is_paused = False

    def ask(self, request: bytes, silence_s: float) -> Answer:
        """Send a question."""
        self._stop_timer()
        self._answer = answer = Answer(self, silence_s)
        self._parser = httptools.HttpResponseParser(self)
        if self._transport.is_closing():
            answer.end(ConnectionResetError("closed while nobody asked"))
            return answer
        self._heard = self.loop.time()
        self._timer = self.loop.call_later(silence_s, self._listen)
        self._transport.write(request)
        return answer

    def go_on(self) -> None:
        """There is room again."""
        if self._is_paused and not self._transport.is_closing():
            self._is_paused = False
            self._heard = self.loop.time()
            self._transport.resume_reading()

    def linger(self) -> None:
        """Wait for the end of an answer that nobody reads any more."""
        self.go_on()
        self._stop_timer()
        self._timer = self.loop.call_later(_LINGER_S, self.cut)

    def cut(self) -> None:
        """Close it at once."""
        self._end(ConnectionAbortedError("closed"))

    # asyncio's side ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        probe(transport.get_extra_info("socket"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._answer is None:
            self.cut()
            return
        self._heard = self.loop.time()
        try:
            self._parser.feed_data(_buffer[:nbytes])
        except httptools.HttpParserError as error:
            self._end(ConnectionError(f"no HTTP: {error}"))

    def eof_received(self) -> None:
        self._end(ConnectionResetError("closed before the end"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionResetError(f"closed before the end: {exc or 'by its server'}"))

    def _end(self, error: OSError) -> None:
        self._stop_timer()
        with suppress(ValueError):
            _idle_at(self.loop, self._place).remove(self)
        if not self._transport.is_closing():
            self._transport.abort()
        if self._answer is not None:
            answer, self._answer = self._answer, None
            answer.end(error)

    def _listen(self) -> None:
        """Whether the server is silent: one timer an answer, not one a token."""
        assert self._answer is not None
        silent_s = 0.0 if self._is_paused else self.loop.time() - self._heard
        if silent_s >= self._answer.silence_s:
            self._end(TimeoutError("the server is silent"))
        else:
            self._timer = self.loop.call_later(self._answer.silence_s - silent_s, self._listen)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The parser's side ------------------------------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        """The head's end."""
        status = self._parser.get_status_code()
        if self._answer is not None and status >= 200:
            self._answer.begin(status)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._answer is not None and not self._answer.take(body) and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer's end: the connection may be asked again."""
        if self._answer is None or not self._answer.status:
            return
        self._stop_timer()
        answer, self._answer = self._answer, None
        self.go_on()
        idle = _idle_at(self.loop, self._place)
        if self._parser.should_keep_alive() and len(idle) < _MOST_IDLE:
            self._timer = self.loop.call_later(_IDLE_S, self.cut)
            idle.append(self)
        else:
            self._transport.close()
        answer.end()
