"""Reading the same thing once, however many ask for it at about the same moment."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


async def shared(
    readings: "dict[_Key, asyncio.Future[_Value]]", key: _Key, read: Callable[[], Awaitable[_Value]]
) -> _Value:
    """What `read` finds; while somebody of this event loop reads it already, what they find."""
    found = readings.get(key)
    if found is None or found.get_loop() is not asyncio.get_running_loop():
        found = readings[key] = asyncio.ensure_future(_awaited(read))
        found.add_done_callback(partial(_read, readings, key))
    return await asyncio.shield(found)


async def _awaited(read: Callable[[], Awaitable[_Value]]) -> _Value:
    return await read()


def _read(readings: "dict[_Key, asyncio.Future[_Value]]", key: _Key, done: "asyncio.Future[_Value]") -> None:
    """Whoever asked may have gone away: an error nobody waits for any more is no news."""
    readings.pop(key, None)
    if not done.cancelled():
        done.exception()
