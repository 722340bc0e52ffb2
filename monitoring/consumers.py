"""The dashboard's socket: a frame for each sample, the newest ones only.

Frames go one way. `?node=NAME` asks for one node's alone.
"""

import asyncio
import time
from typing import Any
from urllib.parse import parse_qs

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from accounts.models import User
from monitoring import access, events
from monitoring.models import Sample

# What the person may see, and whether they still may see anything, is asked again after this.
_RECHECK_S = 15.0
_NOT_SIGNED_IN = 4401


class MonitoringConsumer(AsyncJsonWebsocketConsumer):
    """One open dashboard.

    A sample that comes while the one before is still on its way to a slow client waits in its node's single place; the
    next one takes that place.
    """

    async def connect(self) -> None:
        """Accept who is signed in, show the present, then whatever comes."""
        self._waiting: dict[str, dict[str, Any]] = {}
        self._something_waits = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._models: frozenset[int] | None = frozenset()
        self._checked_at = -_RECHECK_S
        self._node = parse_qs(self.scope["query_string"].decode()).get("node", [None])[0]
        if not await self._is_allowed():
            # A socket refused before it is accepted can't tell the browser why.
            await self.accept()
            await self.close(_NOT_SIGNED_IN)
            return
        await self.channel_layer.group_add(events.GROUP, self.channel_name)
        await self.accept()
        for sample in await database_sync_to_async(Sample.objects.newest)(self._node):
            self._offer(sample.node.name, sample.at.isoformat(), sample.data)
        self._sender = asyncio.create_task(self._send_what_waits(), name=f"dashboard {self.channel_name}")

    async def disconnect(self, code: int) -> None:
        """Stop sending."""
        await self.channel_layer.group_discard(events.GROUP, self.channel_name)
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def receive_json(self, content: Any, **_: Any) -> None:
        """Nothing is asked over this socket."""

    async def monitoring_sample(self, message: dict[str, Any]) -> None:
        """A node was sampled."""
        if self._node not in (None, message["node"]):
            return
        if not await self._is_allowed():
            await self.close(_NOT_SIGNED_IN)
            return
        self._offer(message["node"], message["at"], message["data"])

    def _offer(self, node: str, at: str, data: dict[str, Any]) -> None:
        self._waiting[node] = {
            "type": "sample",
            "data": {"node": node, **access.visible_part(data, self._models)},
            "timestamp": at,
            "requestId": None,
        }
        self._something_waits.set()

    async def _send_what_waits(self) -> None:
        while True:
            await self._something_waits.wait()
            self._something_waits.clear()
            while self._waiting:
                node = next(iter(self._waiting))
                await self.send_json(self._waiting.pop(node))

    async def _is_allowed(self) -> bool:
        """Whether the person may look at all; refreshes what they may see when that is due."""
        if time.monotonic() - self._checked_at < _RECHECK_S:
            return True
        user = await database_sync_to_async(_active_user)(self.scope["user"].pk)
        if user is None:
            return False
        self._models = await database_sync_to_async(access.visible_models)(user)
        self._checked_at = time.monotonic()
        return True


def _active_user(pk: int | None) -> User | None:
    return None if pk is None else User.objects.filter(pk=pk, is_active=True).first()
