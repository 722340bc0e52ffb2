"""The client of one llama-server or external server: opens a completion and yields what comes.

Token streams go through aiohttp (docs/adr/0001-relay.md has the measurements). Closing the response closes the socket,
and llama-server frees the slot; so whoever opens must close, which `open_completion` being a context manager ensures.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from gateway import dialect
from gateway.errors import ContextExceeded, UpstreamLost, UpstreamRefused
from gateway.sse import DONE, EventSplitter, LineTooLong
from llamaproj.errors import LlamaProjError
from models_admin.models import Instance

# Reading a long prompt on a slow machine sends progress after every batch; silence longer than this is a hang.
_SILENCE_S = 180.0
_CONNECT_S = 3.0
# Far beyond any answer or error; what a stranger sends without end must not fill the memory.
_MAX_WHOLE_BYTES = 32 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024

# How many portals have passed a request on already.
HOPS_HEADER = "x-llamaproj-hops"

_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = (
    weakref.WeakKeyDictionary()
)


def session() -> aiohttp.ClientSession:
    """The client session of the running event loop: one connection pool a process."""
    loop = asyncio.get_running_loop()
    found = _sessions.get(loop)
    if found is None or found.closed:
        found = _sessions[loop] = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
            # One server's cookies are no other's business, and one user's not another's.
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
            json_serialize=lambda value: orjson.dumps(value).decode(),
        )
    return found


async def close_session() -> None:
    """Close the running loop's client session, at the end of a process."""
    found = _sessions.pop(asyncio.get_running_loop(), None)
    if found is not None:
        await found.close()


class UpstreamStream:
    """An open completion. `payloads` yields the JSON of each event until `[DONE]`."""

    def __init__(
        self, response: aiohttp.ClientResponse, error_of: Callable[[int, bytes], LlamaProjError]
    ) -> None:
        self._response = response
        self._error_of = error_of

    async def payloads(self) -> AsyncIterator[bytes]:
        """Raw JSON of each chunk. Raises `UpstreamLost` when the stream ends before `[DONE]`, or the error it tells."""
        splitter = EventSplitter()
        try:
            async for data in self._response.content.iter_any():
                for payload in splitter.feed(data):
                    if payload == DONE:
                        return
                    if payload.startswith(b'{"error"'):
                        raise self._error_of(500, payload)
                    yield payload
        except (aiohttp.ClientError, TimeoutError, OSError, LineTooLong) as error:
            raise UpstreamLost(f"The model's server broke off: {type(error).__name__}.") from error
        raise UpstreamLost("The model's server broke off in mid-answer.")

    async def whole(self, most_bytes: int = _MAX_WHOLE_BYTES) -> bytes:
        """The body of an answer that isn't streamed. Raises `UpstreamLost`, also for one that is absurdly long."""
        body = bytearray()
        try:
            async for data in self._response.content.iter_any():
                body += data
                if len(body) > most_bytes:
                    raise UpstreamLost("The model's server sends more than any answer is long.")
            return bytes(body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamLost(f"The model's server broke off: {type(error).__name__}.") from error


@asynccontextmanager
async def open_completion(
    instance: Instance, path: str, body: dict[str, Any], *, hops: int = 0
) -> AsyncIterator[UpstreamStream]:
    """Post `body` to the instance's `path`.

    Raises `UpstreamLost`, `ContextExceeded` or `UpstreamRefused`; for external servers `UpstreamBusy`, too.
    """
    server = instance.served.external
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    if key := instance.api_key:
        headers["authorization"] = f"Bearer {key}"
    if server is not None:
        headers[HOPS_HEADER] = str(hops + 1)
    try:
        response = await session().post(
            server.url(path) if server else instance.base_url + path,
            data=orjson.dumps(body),
            headers=headers,
            # A redirect would take the request, the key and the portal wherever a stranger likes.
            allow_redirects=False,
        )
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UpstreamLost(f"The model's server can't be reached: {type(error).__name__}.") from error
    try:
        stream = UpstreamStream(response, dialect.error_of if server else _error_of)
        if response.status != 200:
            said = await stream.whole(_MAX_ERROR_BYTES)
            if server is None:
                raise _error_of(response.status, said)
            raise dialect.error_of(response.status, said, response.headers.get("retry-after", ""))
        yield stream
    finally:
        response.close()


def _error_of(status: int, body: bytes) -> UpstreamLost | ContextExceeded | UpstreamRefused:
    """Translate llama-server's error object; see its server README, "OAI-like error responses"."""
    try:
        error = orjson.loads(body)["error"]
        kind, message = str(error.get("type", "")), str(error.get("message", ""))
        status = int(error.get("code", status))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return UpstreamLost(f"The model's server answered {status} without a readable reason.")
    if kind == "exceed_context_size_error":
        return ContextExceeded(error.get("n_prompt_tokens"), error.get("n_ctx"))
    if 400 <= status < 500 and status not in {401, 403, 404, 408, 429}:
        return UpstreamRefused(message)
    return UpstreamLost(f"The model's server answered {status}: {message}")
