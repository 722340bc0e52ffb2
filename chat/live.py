"""This web process's place in the relay: one hub for all its sockets."""

import asyncio
import weakref
from uuid import UUID, uuid4

from channels.db import database_sync_to_async

from chat.models import Generation
from chat.relay_hub import Checkpoint, Hub
from chat.rendering import AnswerFeed
from chat.states import MessageStatus
from gateway.valkey import client

_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub[AnswerFeed]] = weakref.WeakKeyDictionary()


def hub() -> "Hub[AnswerFeed]":
    """The hub of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _hubs:
        _hubs[loop] = Hub(client(), uuid4().hex, _checkpoint, AnswerFeed)
    return _hubs[loop]


async def close_hub() -> None:
    """End the running event loop's hub."""
    if found := _hubs.pop(asyncio.get_running_loop(), None):
        await found.close()


@database_sync_to_async
def _checkpoint(generation: str) -> Checkpoint | None:
    row = Generation.objects.select_related("message").filter(pk=UUID(generation)).first()
    if row is None:
        return None
    return Checkpoint(row.message.text, MessageStatus(row.message.status), final=row.ended_at is not None)
