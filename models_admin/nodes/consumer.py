"""The nodes page's socket, `/ws/models/nodes/`: like the models pages', for administrators."""

import asyncio

from accounts.models import User
from llamaproj.errors import NotFound
from models_admin import access
from models_admin.consumers import Frame, ModelsConsumer
from models_admin.nodes import fragments as node_fragments

# Machines announce themselves about as often.
_EVERY_S = 5.0
_TIME = "time"


class NodesConsumer(ModelsConsumer):
    """One open nodes page. It is also sent when nothing was announced: silence is what it must show."""

    _clock: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """As the models pages, and again every few seconds."""
        await super().connect()
        if self._sender is not None:
            self._clock = asyncio.create_task(self._tick(), name=f"nodes page {self.channel_name}")

    async def disconnect(self, code: int) -> None:
        """Stop sending."""
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.gather(self._clock, return_exceptions=True)
        await super().disconnect(code)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            self._note(_TIME)

    def _of_list(self, user: User, changed: set[int | str]) -> list[Frame]:
        if not access.may_manage(user):
            raise NotFound
        return [(node_fragments.nodes(user), "#nodes", "outerMorph")]
