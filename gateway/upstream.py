"""The client of one llama-server: opens a completion and yields what comes.

Token streams go through aiohttp (docs/adr/0001-relay.md has the measurements). Closing the response closes the socket,
and llama-server frees the slot; so whoever opens must close, which `open_completion` being a context manager ensures.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from gateway.errors import ContextExceeded, UpstreamLost, UpstreamRefused
from gateway.sse import DONE, EventSplitter, LineTooLong
from models_admin.models import Instance

# Reading a long prompt on a slow machine sends progress after every batch; silence longer than this is a hang.
_SILENCE_S = 180.0
_CONNECT_S = 3.0

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

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def payloads(self) -> AsyncIterator[bytes]:
        """Raw JSON of each chunk. Raises `UpstreamLost` when the stream ends before `[DONE]`."""
        splitter = EventSplitter()
        try:
            async for data in self._response.content.iter_any():
                for payload in splitter.feed(data):
                    if payload == DONE:
                        return
                    if payload.startswith(b'{"error"'):
                        raise _error_of(500, payload)
                    yield payload
        except (aiohttp.ClientError, TimeoutError, OSError, LineTooLong) as error:
            raise UpstreamLost(f"The model's server broke off: {type(error).__name__}.") from error
        raise UpstreamLost("The model's server broke off in mid-answer.")

    async def whole(self) -> bytes:
        """The body of an answer that isn't streamed."""
        try:
            return await self._response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamLost(f"The model's server broke off: {type(error).__name__}.") from error


@asynccontextmanager
async def open_completion(
    instance: Instance, path: str, body: dict[str, Any]
) -> AsyncIterator[UpstreamStream]:
    """Post `body` to the instance's `path`. Raises `UpstreamLost`, `ContextExceeded` or `UpstreamRefused`."""
    try:
        response = await session().post(
            instance.base_url + path,
            data=orjson.dumps(body),
            headers={"authorization": f"Bearer {instance.api_key}", "content-type": "application/json"},
        )
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UpstreamLost(f"The model's server can't be reached: {type(error).__name__}.") from error
    try:
        if response.status != 200:
            raise _error_of(response.status, await UpstreamStream(response).whole())
        yield UpstreamStream(response)
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
