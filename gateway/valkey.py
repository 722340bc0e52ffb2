"""Valkey for asyncio: redis-py for subscriptions and streams, and one pipelined connection for what can't wait.

redis-py takes a connection out of a pool for each command; measured here it needs 110 µs for a script that runs in 2.
`Line` writes each command at once on its one connection and gives the answers out in their order: 15 µs.
"""

import asyncio
import hashlib
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

import hiredis
from django.conf import settings
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.exceptions import ConnectionError as ValkeyGone
from redis.exceptions import ResponseError

_MAX_CONNECTIONS = 16
_WAIT_S = 5.0
_CONNECT_S = 2.0
# An answer takes microseconds; a server that is silent from one look to the next is gone, whatever its socket says.
_LOOK_EVERY_S = 1.5

# What a server answers that isn't there yet, or not any more.
_AWAY = ("LOADING", "BUSY", "READONLY", "MASTERDOWN")

Argument = str | int | float | bytes | memoryview


def client() -> "Redis":
    """A client with a pool of its own: when hundreds of answers begin at once, they wait for a connection."""
    pool = BlockingConnectionPool.from_url(
        settings.REDIS_URL, max_connections=_MAX_CONNECTIONS, timeout=_WAIT_S
    )
    return Redis.from_pool(pool)


class Script:
    """A Lua script, known to the server by its digest."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Protocol(asyncio.Protocol):
    """One connection: questions in order, answers in the same order."""

    def __init__(self, heard: Callable[[Any], None] | None) -> None:
        self._reader = hiredis.Reader()
        self._heard = heard
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._transport: asyncio.WriteTransport | None = None
        self._looking: asyncio.TimerHandle | None = None
        self.is_open = False
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self.closed.set()
        if self._looking is not None:
            self._looking.cancel()
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(ValkeyGone(f"the connection was lost: {exc or 'closed'}"))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if not self._waiting:
                if self._heard is not None:
                    self._heard(reply)
                continue
            answer = self._waiting.popleft()
            if answer.done():
                continue
            if isinstance(reply, hiredis.ReplyError):
                away = str(reply).startswith(_AWAY)
                answer.set_exception((ValkeyGone if away else ResponseError)(str(reply)))
            else:
                answer.set_result(reply)

    def ask(self, arguments: tuple[Argument, ...]) -> "asyncio.Future[Any]":
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if self._looking is None:
            self._looking = loop.call_later(_LOOK_EVERY_S, self._look, answer)
        self._waiting.append(answer)
        self._transport.write(hiredis.pack_command(arguments))  # type: ignore[arg-type]  # its stub knows one argument only
        return answer

    def _look(self, oldest: "asyncio.Future[Any]") -> None:
        """Give up where the oldest question is still the same as at the last look: one timer for all of them."""
        self._looking = None
        if self._waiting and self._waiting[0] is oldest:
            assert self._transport is not None
            self._transport.abort()
        elif self._waiting:
            loop = asyncio.get_running_loop()
            self._looking = loop.call_later(_LOOK_EVERY_S, self._look, self._waiting[0])

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Line:
    """One pipelined connection to Valkey, opened when it is needed and anew when it is lost."""

    def __init__(self, url: str, heard: Callable[[Any], None] | None = None) -> None:
        """`heard` gets what comes unasked, once something was subscribed to."""
        self._options = parse_url(url)
        self._heard = heard
        self._protocol: _Protocol | None = None
        self._opening: asyncio.Lock = asyncio.Lock()

    async def ask(self, *arguments: Argument) -> Any:
        """The answer to one command. Raises `ValkeyGone`, `OSError` or `ResponseError`."""
        protocol = self._protocol
        if protocol is None or not protocol.is_open:
            protocol = await self._open()
        return await protocol.ask(arguments)

    async def subscribe(self, channel: str) -> None:
        """Have `heard` told what is published there, as long as the connection lives; call it again and again."""
        if self._protocol is None or not self._protocol.is_open:
            await self.ask("SUBSCRIBE", channel)

    def run(
        self, script: Script, *arguments: Argument, keys: tuple[Argument, ...] = ()
    ) -> Coroutine[Any, Any, Any]:
        """The answer of a script, which is asked before anybody awaits it where the connection is open. Raises as `ask`
        does, once it is awaited."""
        asked = ("EVALSHA", script.digest, len(keys), *keys, *arguments)
        protocol = self._protocol
        first = protocol.ask(asked) if protocol is not None and protocol.is_open else self.ask(*asked)
        return self._known(first, script, len(keys), *keys, *arguments)

    async def _known(self, first: Awaitable[Any], script: Script, *arguments: Argument) -> Any:
        """The first answer, or the one of a server that had to be told the script."""
        try:
            return await first
        except ResponseError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await self.ask("EVAL", script.text, *arguments)

    async def aclose(self) -> None:
        """Close the connection, and return when it is closed."""
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CONNECT_S):
                    await protocol.closed.wait()

    async def _open(self) -> _Protocol:
        async with self._opening:
            if self._protocol is not None and self._protocol.is_open:
                return self._protocol
            try:
                async with asyncio.timeout(_CONNECT_S):
                    protocol = await self._connect()
                    if password := self._options.get("password"):
                        user = self._options.get("username")
                        await protocol.ask(("AUTH", *([user] if user else []), password))
                    if database := self._options.get("db"):
                        await protocol.ask(("SELECT", database))
            except (TimeoutError, OSError) as error:
                raise ValkeyGone(f"Valkey can't be reached: {error or 'no answer'}") from error
            self._protocol = protocol
            return protocol

    def _new_protocol(self) -> _Protocol:
        return _Protocol(self._heard)

    async def _connect(self) -> _Protocol:
        loop = asyncio.get_running_loop()
        if path := self._options.get("path"):
            return (await loop.create_unix_connection(self._new_protocol, path))[1]
        is_tls = "ssl" in str(self._options.get("connection_class", "")).lower()
        _, protocol = await loop.create_connection(
            self._new_protocol,
            self._options.get("host", "localhost"),
            int(self._options.get("port", 6379)),
            ssl=ssl.create_default_context() if is_tls else None,
        )
        return protocol
