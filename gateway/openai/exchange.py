"""One request and its answer on an ASGI connection."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from gateway import sse
from gateway.openai import headers
from gateway.openai.errors import BodyTooLarge, ClientGone, error_object, retry_headers
from gateway.openai.headers import Headers
from llamaproj.errors import LlamaProjError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_BYTES = 16 * 1024 * 1024
# What is said last has so long to be read.
_GRACE_S = 5.0
# Who reads nothing for so long has hung, or is a machine that was cut off.
_STALLED_S = 120.0
_JSON: Headers = [(b"content-type", b"application/json")]
_EVENTS: Headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]


class Exchange:
    """A request that comes in and an answer that goes out. `status` is 0 until the answer has begun."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive, self._send = receive, send
        self.request_id = headers.request_id(self.header(b"x-request-id"))
        self.is_secure = headers.is_secure(scope.get("scheme", "http"), self.header(b"x-forwarded-proto"))
        self.status = 0
        self.error_code = ""
        self.is_over = False
        self._is_stream = False
        self._cutting: asyncio.TimerHandle | None = None

    def header(self, name: bytes) -> str:
        """A request's header; empty without it."""
        return self._headers.get(name, b"").decode("latin-1")

    async def body(self) -> bytes:
        """The whole body. Raises `BodyTooLarge` or `ClientGone`."""
        said = self._headers.get(b"content-length", b"")
        if said.isdigit() and int(said) > MOST_BYTES:
            raise BodyTooLarge
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body"):
            if len(body) > MOST_BYTES:
                raise BodyTooLarge
            return body
        pieces = bytearray(body)
        while message["type"] == "http.request" and message.get("more_body"):
            message = await self._receive()
            pieces += message.get("body", b"")
            if len(pieces) > MOST_BYTES:
                raise BodyTooLarge
        if message["type"] != "http.request":
            raise ClientGone
        return bytes(pieces)

    # Out --------------------------------------------------------------------------------------------------------------

    async def answer(self, body: bytes, more: Headers, status: int = 200) -> None:
        """The whole answer, JSON."""
        await self._start(status, [*_JSON, (b"content-length", b"%d" % len(body)), *more])
        self.is_over = True
        await self._send({"type": "http.response.body", "body": body})

    async def begin_stream(self, more: Headers) -> None:
        """Begin an answer of events."""
        self._is_stream = True
        await self._start(200, [*_EVENTS, *more])

    def write(self, events: bytes) -> Awaitable[None]:
        """Events of the answer. Done when the client has room for more."""
        return self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self) -> None:
        """The end of an answer of events."""
        self.is_over = True
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: LlamaProjError, more: Headers = []) -> None:  # noqa: B006  # never changed
        """Tell what went wrong: as the answer, or as the last event of one that has begun."""
        self.error_code = error.code
        said = orjson.dumps(error_object(error))
        if not self.status:
            await self.answer(said, [*retry_headers(error), *more], error.status)
        elif self._is_stream and not self.is_over:
            self.is_over = True
            await self._send({"type": "http.response.body", "body": sse.event(said)})

    async def _start(self, status: int, more: Headers) -> None:
        self.status = status
        said = [
            *more,
            (b"x-request-id", self.request_id.encode()),
            *headers.careful(secure=self.is_secure),
            *headers.cross_origin(self.header(b"origin")),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": said})

    # Our end ----------------------------------------------------------------------------------------------------------

    def end_soon(self) -> None:
        """Cut the connection off if the exchange isn't over in a moment: its client may have stopped reading."""
        if self._cutting is None:
            self._cutting = asyncio.get_running_loop().call_later(_GRACE_S, self._cut)

    def close(self) -> None:
        """The exchange is over; its connection may be used for another."""
        if self._cutting is not None:
            self._cutting.cancel()

    def _bound_patience(self) -> None:
        """Have the system cut off a client that takes nothing for so long: it holds a slot that others wait for."""
        transport = self._transport()
        connection = transport.get_extra_info("socket") if transport is not None else None
        if (
            connection is not None
            and connection.family != socket.AF_UNIX
            and hasattr(socket, "TCP_USER_TIMEOUT")
        ):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_STALLED_S * 1000))

    def _cut(self) -> None:
        transport = self._transport()
        if transport is not None:
            transport.abort()

    def _transport(self) -> asyncio.Transport | None:
        # ASGI has no word for this. uvicorn's `send` is a method of what holds the connection; with another server a
        # connection lasts as long as its client wants.
        return getattr(getattr(self._send, "__self__", None), "transport", None)

    # The client's end -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """While the block runs, it ends at once when the client goes away. Raises `ClientGone`."""
        task = asyncio.current_task()
        assert task is not None
        is_gone = False

        async def listen() -> None:
            nonlocal is_gone
            self._bound_patience()
            while (await self._receive())["type"] != "http.disconnect":
                pass
            # A server also says so of a request that is answered.
            if not self.is_over:
                is_gone = True
                task.cancel()

        listener = asyncio.create_task(listen(), name=f"client-of-{self.request_id}")
        try:
            yield
        except asyncio.CancelledError:
            if not is_gone:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            listener.cancel()
