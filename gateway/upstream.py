"""The client of one llama-server or external server: opens an answer and gives what comes, in whole events.

Servers of ours are asked over the lean `wire` (docs/adr/0002-api-hot-path.md has the measurements), others over
aiohttp, which knows TLS, proxies and what else there is between them and us. Closing an answer closes its socket, and
llama-server frees the slot; so whoever opens must close.
"""

import asyncio
import re
import socket
import weakref
from collections.abc import Coroutine
from typing import Any

import aiohttp
import orjson
import structlog
from aiohttp.connector import AddrInfoType

from gateway import dialect, sse, wire
from gateway.errors import ContextExceeded, NotSupported, UpstreamLost, UpstreamRefused
from gateway.replica import Replica
from llamaproj.errors import InvalidInput, LlamaProjError

log = structlog.get_logger(__name__)

# Reading a long prompt on a slow machine sends progress after every batch; silence longer than this is a hang. An
# answer that isn't streamed is silent until its end.
_SILENCE_S, _WHOLE_S = 180.0, 1800.0
_CONNECT_S = 3.0
_STREAMED = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
_AS_A_WHOLE = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_WHOLE_S)
_AT_ONCE = aiohttp.ClientTimeout(total=5.0, sock_connect=_CONNECT_S)
# Far beyond any answer or error; what a stranger sends without end must not fill the memory.
_MAX_WHOLE_BYTES = 32 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
# Of a stranger that doesn't know these, more is wrong than what was asked.
_EVERYBODY_KNOWS = frozenset({"/v1/chat/completions", "/v1/completions"})

# What llama-server calls its own fault and isn't: wrong pictures, tools and templates, found while it reads a request.
_OWN_FAULT = re.compile(r"not supported|[Ff]ailed to parse|json\.exception|[Ee]xpected|template")

# How many portals have passed a request on already.
HOPS_HEADER = "x-llamaproj-hops"
# An error in mid-stream, and the ends of a stream: of completions, and of responses.
_ERROR = b'data: {"error"'
_ENDS = (
    b"data: [DONE]",
    b"event: response.completed",
    b"event: response.incomplete",
    b"event: response.failed",
)

_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = (
    weakref.WeakKeyDictionary()
)


def session() -> aiohttp.ClientSession:
    """The client session of the running event loop: one connection pool a process."""
    loop = asyncio.get_running_loop()
    found = _sessions.get(loop)
    if found is None or found.closed:
        found = _sessions[loop] = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15, socket_factory=_probed_socket),
            # One server's cookies are no other's business, and one user's not another's.
            cookie_jar=aiohttp.DummyCookieJar(),
        )
    return found


def _probed_socket(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    wire.probe(made)
    return made


async def close_session() -> None:
    """Close the running loop's connections, at the end of a process."""
    await wire.close_idle()
    found = _sessions.pop(asyncio.get_running_loop(), None)
    if found is not None:
        await found.close()


class UpstreamStream:
    """An open answer, as it comes."""

    def __init__(self, answer: aiohttp.ClientResponse | wire.Answer, *, by_lines: bool = False) -> None:
        self._answer = answer
        self._body = answer.content if isinstance(answer, aiohttp.ClientResponse) else answer
        self._events = sse.EventBlocks(b"\n" if by_lines else b"\n\n")
        self._ended = False
        self._error: LlamaProjError | None = None

    def block(self) -> Coroutine[Any, Any, bytes]:
        """The next events, untouched; empty after the last. Raises `UpstreamLost` when they stop before their end, or
        the error that one of them tells."""
        return self._next(are_known=True)

    def read(self) -> Coroutine[Any, Any, bytes]:
        """The next events, whatever they say. Raises `UpstreamLost` at the end of the stream."""
        return self._next(are_known=False)

    async def _next(self, *, are_known: bool) -> bytes:
        # Each token passes here: one coroutine, and a look for what says more than a token.
        while not self._ended:
            try:
                data = await self._body.readany()
                block = self._events.feed(data)
            except (aiohttp.ClientError, OSError, sse.LineTooLong) as error:
                raise UpstreamLost(f"The model's server broke off: {type(error).__name__}.") from error
            if not data:
                raise UpstreamLost("The model's server broke off in mid-answer.")
            if are_known and (b"[DONE]" in block or b'"error"' in block or b"event: response." in block):
                block = self._look_into(block)
            if block:
                return block
        if self._error is not None:
            raise self._error
        return b""

    async def whole(self, most_bytes: int = _MAX_WHOLE_BYTES) -> bytes:
        """The body of an answer that isn't streamed. Raises `UpstreamLost`, also for one that is absurdly long."""
        body = bytearray()
        try:
            while data := await self._body.readany():
                body += data
                if len(body) > most_bytes:
                    raise UpstreamLost("The model's server sends more than any answer is long.")
            return bytes(body)
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamLost(f"The model's server broke off: {type(error).__name__}.") from error

    def close(self) -> None:
        """Close the socket, whoever writes at its other end stops; an answer that has ended keeps it for the next."""
        if self._ended and isinstance(self._answer, wire.Answer):
            self._answer.release()
        else:
            self._answer.close()

    def _look_into(self, block: bytes) -> bytes:
        """The events up to an end, or an error."""
        if _ERROR in block and sse.begins_with(block, _ERROR):
            return self._cut_at_error(block)
        if any(end in block and sse.begins_with(block, end) for end in _ENDS):
            self._ended = True
        return block

    def _cut_at_error(self, block: bytes) -> bytes:
        """The events before the error; the error itself comes up with the next question."""
        start = 0 if block.startswith(_ERROR) else block.index(b"\n\n" + _ERROR) + 2
        self._ended = True
        self._error = _error_of(500, next(sse.payloads(block[start:])))
        return block[:start]


async def open_answer(replica: Replica, path: str, body: dict[str, Any], *, hops: int = 0) -> UpstreamStream:
    """Post `body` to the replica's `path`. Whoever gets the answer closes it.

    Raises `UpstreamLost`, `ContextExceeded`, `NotSupported` or `UpstreamRefused`; for external servers `UpstreamBusy`,
    too.
    """
    try:
        answer = await _post(replica, path, body, hops)
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamLost(f"The model's server can't be reached: {type(error).__name__}.") from error
    stream = UpstreamStream(answer, by_lines=replica.external is not None)
    if answer.status == 200:
        return stream
    try:
        said = await stream.whole(_MAX_ERROR_BYTES)
    finally:
        stream.close()
    if isinstance(answer, wire.Answer):
        raise _error_of(answer.status, said)
    if answer.status in {404, 405, 501} and path not in _EVERYBODY_KNOWS:
        raise NotSupported
    raise dialect.error_of(answer.status, said, answer.headers.get("retry-after", ""))


async def _post(
    replica: Replica, path: str, body: dict[str, Any], hops: int
) -> aiohttp.ClientResponse | wire.Answer:
    is_streamed = bool(body.get("stream"))
    authorization = f"Bearer {replica.api_key}" if replica.api_key else ""
    if replica.external is None:
        silence_s = _SILENCE_S if is_streamed else _WHOLE_S
        return await wire.post(replica.url(path), dumps(body), authorization, silence_s)
    headers = {"content-type": "application/json", "accept-encoding": "identity", HOPS_HEADER: str(hops + 1)}
    if authorization:
        headers["authorization"] = authorization
    return await session().post(
        replica.url(path),
        data=dumps(body),
        headers=headers,
        # A redirect would take the request, the key and the portal wherever a stranger likes.
        allow_redirects=False,
        timeout=_STREAMED if is_streamed else _AS_A_WHOLE,
    )


async def erase_slot(replica: Replica, slot: int) -> None:
    """Have the replica forget what a slot holds. One that can't is asked not to use it (`cache_prompt`)."""
    try:
        async with session().post(
            replica.url(f"/slots/{slot}?action=erase"),
            headers={"authorization": f"Bearer {replica.api_key}"},
            allow_redirects=False,
            timeout=_AT_ONCE,
        ) as response:
            if response.status != 200:
                log.warning("a slot could not be erased", instance=str(replica.pk), status=response.status)
    except TimeoutError:
        # It still ends somebody's request.
        log.warning("a slot was not erased in time", instance=str(replica.pk))
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamLost(f"The model's server can't be reached: {type(error).__name__}.") from error


def dumps(body: dict[str, Any]) -> bytes:
    """The request as JSON. Raises `InvalidInput` for one that is nested too deeply."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise InvalidInput("The body is nested too deeply.") from error


def _error_of(status: int, body: bytes) -> LlamaProjError:
    """Translate llama-server's error object; see its server README, "OAI-like error responses"."""
    try:
        error = orjson.loads(body)["error"]
        kind, message = str(error.get("type", "")), str(error.get("message", ""))
        status = int(error.get("code", status))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return UpstreamLost(f"The model's server answered {status} without a readable reason.")
    if kind == "exceed_context_size_error":
        return ContextExceeded(error.get("n_prompt_tokens"), error.get("n_ctx"))
    if status in {404, 501}:
        return NotSupported()
    if 400 <= status < 500 and status not in {401, 403, 408, 429}:
        return UpstreamRefused(message)
    if status == 500 and _OWN_FAULT.search(message):
        return UpstreamRefused(message)
    return UpstreamLost(f"The model's server answered {status}: {message}")
