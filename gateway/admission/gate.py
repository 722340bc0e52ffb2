"""One process's place at the gate: its tickets, its heartbeat, and the ear for slots it is given."""

import asyncio
import secrets
import time
import weakref
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog
from channels.db import database_sync_to_async
from django.conf import settings
from django.db import DatabaseError, InterfaceError
from redis.exceptions import ConnectionError as ValkeyGone
from redis.exceptions import ResponseError

from gateway.admission import callers, catalog, scripts
from gateway.valkey import Line, Script
from llamaproj.errors import NotAuthenticated, Unavailable
from models_admin import demand

if TYPE_CHECKING:
    from gateway.admission.tickets import Ticket

log = structlog.get_logger(__name__)

BEAT_S = 1.0
# Who comes while Valkey is away waits for it so long.
_GONE_S = 5.0
_RETRY_S = 0.1
# A script holds up everybody else's: what many tickets have to say is said in parts.
_AT_ONCE = 100


class Gate:
    """What this process holds at the gate."""

    def __init__(self) -> None:
        self.process = uuid4().hex
        self.rights = ""
        self.catalog = ""
        self.tickets: dict[str, Ticket] = {}
        # Ends that Valkey has not heard of yet.
        self._unsettled: list[tuple[Any, ...]] = []
        self._line = Line(settings.REDIS_URL)
        self._ear = Line(settings.REDIS_URL, heard=self._hear)
        self._beating: asyncio.Task[None] | None = None

    async def run(self, script: Script, *arguments: Any, keys: tuple[Any, ...] = ()) -> Any:
        """A script's answer; Valkey is waited for. Raises `Unavailable`."""
        self.start()
        until = time.monotonic() + _GONE_S
        while True:
            try:
                return await self._line.run(script, *arguments, keys=keys)
            except (ValkeyGone, OSError) as error:
                if time.monotonic() >= until:
                    log.warning("nothing is admitted without Valkey", error=str(error))
                    raise Unavailable(
                        "The portal's memory of who uses what is out of reach; try again in a moment.",
                        retry_after=_GONE_S,
                    ) from error
            await asyncio.sleep(_RETRY_S)

    def run_once(
        self, script: Script, *arguments: Any, keys: tuple[Any, ...] = ()
    ) -> Coroutine[Any, Any, Any]:
        """A script's answer; asked at once, if it can be. Raises `ValkeyGone` or `OSError`."""
        return self._line.run(script, *arguments, keys=keys)

    def settle_later(self, arguments: tuple[Any, ...]) -> None:
        """Tell Valkey of an end once it is back."""
        self._unsettled.append(arguments)

    def start(self) -> None:
        """Begin the heartbeat, which goes on until the process or its event loop ends."""
        if self._beating is None or self._beating.done():
            self._beating = asyncio.create_task(self._beat_on(), name="gate-heartbeat")

    async def stop(self) -> None:
        """End the heartbeat and close the connections."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        await self._line.aclose()
        await self._ear.aclose()

    async def _beat_on(self) -> None:
        while True:
            try:
                await self._ear.subscribe(scripts.GRANTED + self.process)
                await self._beat()
            except (ValkeyGone, OSError, ResponseError, DatabaseError, InterfaceError) as error:
                log.warning("the gate waits for its services", error=str(error))
            await asyncio.sleep(BEAT_S)

    async def _beat(self) -> None:
        while self._unsettled:
            await self.run_once(*self._unsettled[0])
            self._unsettled.pop(0)
        said = [
            (id_, ticket.completion_tokens, int(ticket.has_slot()))
            for id_, ticket in self.tickets.items()
            if ticket.is_known
        ]
        lines: dict[int, int] = {}
        for first in range(0, max(1, len(said)), _AT_ONCE):
            lines |= await self._say(said[first : first + _AT_ONCE])
        if lines:
            await _tell_demand(lines)
        await self._look_at_rights()

    async def _say(self, tickets: list[tuple[str, int, int]]) -> dict[int, int]:
        """Tell how far these are, hear where they stand. How many wait for each of their models."""
        flat = [part for ticket in tickets for part in ticket]
        rights, catalog_version, missing, waiting, running, lines = await self.run_once(
            scripts.BEAT, self.process, secrets.token_hex(8), *flat
        )
        self.rights, self.catalog = rights.decode(), catalog_version.decode()
        for id_ in missing:
            if (lost := self.tickets.get(id_.decode())) is not None:
                await lost.say_again()
        for id_, replica, slot, strange in running:
            if (runs := self.tickets.get(id_.decode())) is not None:
                runs.granted(replica.decode(), slot, bool(strange))
        for id_, place, expected_ms in waiting:
            if (waits := self.tickets.get(id_.decode())) is not None:
                waits.placed(place, expected_ms / 1000)
        return {int(model): count for model, count in lines}

    async def _look_at_rights(self) -> None:
        """Where rights have changed, whoever has lost theirs is told so in the middle of the answer."""
        for ticket in list(self.tickets.values()):
            if ticket.ask.caller.version != self.rights:
                try:
                    ticket.ask.caller = await callers.renewed(ticket.ask.caller, self.rights)
                except NotAuthenticated as error:
                    ticket.revoke(error)

    def _hear(self, message: Any) -> None:
        """Something was published for this process."""
        if not isinstance(message, list) or message[0] != b"message":
            return
        id_, replica, slot, strange = message[2].decode().split(" ")
        if ticket := self.tickets.get(id_):
            ticket.granted(replica, int(slot), strange == "1")

    async def look(self, pk: int) -> catalog.Model:
        """What serves a model, read anew and told to all."""
        while True:
            version = self.catalog
            model = await catalog.look(pk, version)
            self.catalog = (await self.run(scripts.REPLICAS, pk, version, model.places())).decode()
            if self.catalog == version:
                return model

    async def read_versions(self) -> None:
        """Know under which versions rights and models stand now. Raises `Unavailable`."""
        rights, catalog_version = await self.run(scripts.VERSIONS, secrets.token_hex(8))
        self.rights, self.catalog = rights.decode(), catalog_version.decode()


@database_sync_to_async
def _tell_demand(lines: dict[int, int]) -> None:
    for pk, waiting in lines.items():
        demand.wait(pk, waiting)


_gates: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Gate] = weakref.WeakKeyDictionary()


def gate() -> Gate:
    """The running event loop's gate."""
    loop = asyncio.get_running_loop()
    found = _gates.get(loop)
    if found is None:
        found = _gates[loop] = Gate()
    return found


async def stop() -> None:
    """Leave the gate in order, at the end of a process."""
    found = _gates.pop(asyncio.get_running_loop(), None)
    if found is not None:
        await found.stop()
