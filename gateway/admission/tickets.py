"""A request's way through the gate: reserved, a place in the line, a slot, settled.

ticket = await admit(Ask(caller, "qwen3-4b", prompt_tokens=900, completion_tokens=200))
try:
    ...  # ticket.replica, ticket.slot; ticket.completion_tokens is raised with each chunk
finally:
    await ticket.close(record, prompt_tokens, completion_tokens)
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import structlog
from channels.db import database_sync_to_async
from django.db import DatabaseError, InterfaceError
from redis.exceptions import ConnectionError as ValkeyGone
from redis.exceptions import ResponseError

from gateway.admission import callers, catalog, ledger, scripts
from gateway.admission.callers import Caller, Right
from gateway.admission.catalog import Model
from gateway.admission.gate import Gate, gate
from gateway.errors import ContextExceeded, QueueFull
from gateway.replica import Replica
from gateway.usage import drain, record
from llamaproj.errors import LlamaProjError, Unavailable

log = structlog.get_logger(__name__)

# So many requests may wait for one model, and so long; then it is better to say so.
MOST_WAITING = 1000
MOST_WAIT_S = 300.0
# A large file on a slow disk; the reconciler gives up on a load that takes too long before we do.
_LOADING_PATIENCE_S = 600.0
# A replica that starts or restarts is worth waiting for; the pause between two looks is short beside a model's load.
_LOOK_EVERY_S = 0.2
_WORD_EVERY_S = 1.0
# No tokenizer makes a token of more bytes: a prompt of so many more than the context certainly doesn't fit.
_BYTES_OF_A_TOKEN = 128
# Between two answers of the scripts a version may change, seldom often.
_MOST_TURNS = 4000


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a request waits for. `place` counts from 1 in the fair order; both are None while a model loads."""

    word: str
    place: int | None = None
    expected_s: float | None = None


def _unheard(error: LlamaProjError) -> None:
    """Nobody has to know."""


@dataclass(slots=True)
class Ask:
    """Who wants what.

    `prompt_tokens` is an estimate; `completion_tokens` what the request allows itself, None where it doesn't say.
    `thread` names what the prompt begins with: a slot that has read it before is found again. Replicas in `avoid` have
    just failed. A `light` request takes no slot. `on_revoked` is told when the caller loses their rights meanwhile.
    """

    caller: Caller
    slug: str
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_bytes: int = 0
    patience_s: float = 30.0
    thread: str = ""
    avoid: frozenset[UUID] = frozenset()
    light: bool = False
    on_wait: Callable[[Waiting], None] = lambda waiting: None
    on_revoked: Callable[[LlamaProjError], None] = _unheard


class Ticket:
    """A request that was let in. `completion_tokens` is raised by whoever relays the answer."""

    def __init__(self, ask: Ask, gate: Gate) -> None:
        self.id = uuid4()
        self.ask = ask
        self.headers: list[tuple[bytes, bytes]] = []
        self.completion_tokens = 0
        self.place: int | None = None
        self.load_ms = 0.0
        self.queue_ms = 0.0
        # A slot that was another person's: nothing of it may be read.
        self.is_fresh = False
        self.slot: int | None = None
        self.is_known = False
        self.model: Model
        self.right: Right
        self.replica: Replica
        self._gate = gate
        self._key = self.id.hex
        self._granted: asyncio.Future[None] | None = None
        self._granted_to: tuple[str, int, bool] | None = None
        self._granted_ms = 0.0
        self._closed = False
        self._waiting: Waiting | None = None
        self._told: Waiting | None = None

    # In ---------------------------------------------------------------------------------------------------------------

    async def enter(self) -> None:
        """Reserve, and wait for a slot."""
        arrived = time.monotonic()
        self._gate.tickets[self._key] = self
        await self._reserve()
        await self._wait_for_slot(arrived)
        self.queue_ms = (time.monotonic() - arrived) * 1000 - self.load_ms

    async def _reserve(self) -> None:
        gate, ask, arrived = self._gate, self.ask, time.monotonic()
        for _ in range(_MOST_TURNS):
            self.right = await callers.right(ask.caller, ask.slug)
            pk = self.right.served_pk
            self.model = catalog.known(pk) or await catalog.read(pk, gate.catalog)
            self._check_context()
            self.is_known = True
            kind, *rest = await gate.run(scripts.ADMIT, *self._arguments())
            if kind in {b"run", b"wait"}:
                # These versions were the right ones.
                gate.rights = gate.rights or ask.caller.version
                gate.catalog = gate.catalog or self.model.version
            if kind == b"run":
                self.granted(rest[0].decode(), rest[1], bool(rest[2]))
                self.headers = ledger.headers(rest[3:])
                return
            if kind == b"wait":
                self.placed(rest[0], rest[1] / 1000)
                self.headers = ledger.headers(rest[2:])
                return
            self.is_known = False
            await self._answer_refusal(kind, rest, time.monotonic() - arrived)
        raise Unavailable(
            "The portal changes faster than it can be read; try again in a moment.", retry_after=1
        )

    async def _answer_refusal(self, kind: bytes, rest: list[Any], waited: float) -> None:
        """Do what is missing, or raise why it can't be."""
        gate = self._gate
        if kind == b"stale":
            gate.rights, gate.catalog = rest[0].decode(), rest[1].decode()
            self.ask.caller = await callers.renewed(self.ask.caller, gate.rights)
            self.ask.caller.require_inference()
            model = self.model
            if model.version != gate.catalog:
                model = await catalog.read(model.pk, gate.catalog)
            await gate.run(scripts.REPLICAS, model.pk, gate.catalog, model.places())
        elif kind == b"seed":
            await ledger.seed(gate, [name.decode() for name in rest])
        elif kind == b"settling":
            await asyncio.sleep(rest[0] / 1000)
        elif kind == b"nowhere":
            self._check_patience(await gate.look(self.model.pk), waited)
            await asyncio.sleep(_LOOK_EVERY_S)
        elif kind == b"full":
            raise QueueFull(retry_after=max(1.0, rest[0] / 1000))
        else:
            raise ledger.refusal(kind, self.right.subjects, rest)

    def _check_patience(self, model: Model, waited: float) -> None:
        """Raise where waiting for a replica is useless, or was for too long."""
        if refusal := model.refusal():
            raise refusal
        if waited >= (_LOADING_PATIENCE_S if model.is_loading else self.ask.patience_s):
            raise model.impatience()

    def _check_context(self) -> None:
        """Refuse what certainly doesn't fit. What may fit is for the tokenizer to say."""
        least = self.ask.prompt_bytes // _BYTES_OF_A_TOKEN
        for most in (self.model.context_tokens, self.right.context_tokens):
            if most and least > most:
                raise ContextExceeded(least, most)

    def _arguments(self, forced: str = "") -> list[str | int | bytes]:
        ask, caller, context = self.ask, self.ask.caller, self.model.context_tokens
        promised = ask.completion_tokens if ask.completion_tokens is not None else context
        needed = ask.prompt_tokens + promised
        replica, slot, _ = self._granted_to or ("", -1, False)
        return [
            self._key, self._gate.process, caller.version, self.model.version, secrets.token_hex(8), self.model.pk,
            caller.user_pk, caller.weight, caller.queue_class, ask.prompt_tokens,
            -1 if ask.completion_tokens is None else ask.completion_tokens, min(needed, context) if context else needed,
            ask.thread, ",".join(map(str, ask.avoid)), MOST_WAITING, int(ask.light), forced, replica, slot,
            int(self._granted_ms), 2 * self.completion_tokens, self.right.packed,
        ]  # fmt: skip

    # Waiting ----------------------------------------------------------------------------------------------------------

    async def _wait_for_slot(self, arrived: float) -> None:
        """Until a slot is ours. Raises `NotServed` or `QueueFull` when there is no point or no patience left."""
        queued_since = time.monotonic()
        while not self.has_slot():
            is_soon = not self.model.ready or bool(self.ask.avoid)
            if is_soon or self.model.version != self._gate.catalog:
                self.model = await self._gate.look(self.model.pk)
                if self.has_slot():
                    break
            now = time.monotonic()
            if self.model.ready:
                if now - queued_since >= MOST_WAIT_S:
                    raise QueueFull(retry_after=self._waiting.expected_s if self._waiting else None)
                self._tell(self._waiting)
            else:
                self._check_patience(self.model, now - arrived)
                self._tell(Waiting(self.model.word()))
            await self._sleep(_LOOK_EVERY_S if is_soon else _WORD_EVERY_S)
            if not self.model.ready:
                queued_since = time.monotonic()
                self.load_ms = (queued_since - arrived) * 1000
        await self._take()

    def has_slot(self) -> bool:
        """Whether a slot is ours."""
        return self._granted_to is not None

    async def _sleep(self, seconds: float) -> None:
        self._granted = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._granted
        except TimeoutError:
            pass
        finally:
            self._granted = None

    def granted(self, replica: str, slot: int, strange: bool) -> None:
        """A slot is ours."""
        if self._granted_to is None and not self._closed:
            self._granted_to = replica, slot, strange
            self._granted_ms = time.time() * 1000
            if self._granted is not None and not self._granted.done():
                self._granted.set_result(None)

    def placed(self, place: int, expected_s: float) -> None:
        """Where in the line this request is now."""
        if self.place is None:
            self.place = place
        self._waiting = Waiting(_in_line(place, expected_s), place, expected_s)
        if self.model.ready:
            self._tell(self._waiting)

    def _tell(self, waiting: Waiting | None) -> None:
        if waiting is not None and waiting != self._told:
            self._told = waiting
            self.ask.on_wait(waiting)

    async def _take(self) -> None:
        """Know the replica we were given."""
        assert self._granted_to is not None
        replica, slot, self.is_fresh = self._granted_to
        found = self.model.ready.get(UUID(replica))
        if found is None:
            # Somebody else read the catalog later than this process.
            self.model = await self._gate.look(self.model.pk)
            found = self.model.ready.get(UUID(replica))
        if found is None:
            await self.move(lost=False)
            return
        self.replica, self.slot = found, None if slot < 0 else slot

    # On ---------------------------------------------------------------------------------------------------------------

    async def move(self, *, lost: bool) -> None:
        """Another replica, before everybody else who waits; what was reserved stays. Raises `NotServed`."""
        began = time.monotonic()
        self.ask.avoid |= {UUID(self._granted_to[0])} if self._granted_to else set()
        self._granted_to = None
        kind, *rest = await self._gate.run(
            scripts.MOVE, self._key, self._gate.process, "lost" if lost else ""
        )
        if kind == b"run":
            self.granted(rest[0].decode(), rest[1], bool(rest[2]))
        elif kind == b"gone":
            await self.say_again()
        else:
            self.placed(1, rest[1] / 1000)
        await self._wait_for_slot(began)

    async def say_again(self) -> None:
        """Valkey has forgotten this request: tell it."""
        if self._closed or not self.is_known:
            return
        forced = "run" if self._granted_to is not None else "wait"
        kind, *rest = await self._gate.run_once(scripts.ADMIT, *self._arguments(forced))
        if kind == b"run":
            self.granted(rest[0].decode(), rest[1], bool(rest[2]))

    # Out --------------------------------------------------------------------------------------------------------------

    def close(
        self, said: bytes = b"", prompt_tokens: int = 0, completion_tokens: int = 0, *, outcome: str = ""
    ) -> Coroutine[Any, Any, None]:
        """Settle what was reserved, free the slot, hand on the record: said at once, and done when it was awaited.

        Raises nothing; closing twice is closing once. `outcome` is "ok" after an answer, "lost" where the replica
        failed, and empty where nothing is known of it.
        """
        is_open, self._closed = not self._closed, True
        self._gate.tickets.pop(self._key, None)
        # Who listened holds this ticket: a circle would keep all of the request until the collector comes by.
        self.ask.on_revoked = _unheard
        if not is_open or not (self.is_known or said):
            return _nothing()
        return _settle(self._gate, (self._key, prompt_tokens, completion_tokens, outcome), said)

    def revoke(self, error: LlamaProjError) -> None:
        """The caller has lost their rights: waiting ends, and an answer's reader is told."""
        if self.has_slot():
            self.ask.on_revoked(error)
        elif self._granted is not None and not self._granted.done():
            self._granted.set_exception(error)


def _settle(gate: Gate, end: tuple[str | int, ...], said: bytes) -> Coroutine[Any, Any, None]:
    keys = (record.STREAM, record.FIELD)
    asked = gate.run_once(scripts.SETTLE, *end, said, record.MOST_WAITING, keys=keys)
    return _settled(gate, asked, end, said)


async def _settled(
    gate: Gate, asked: Coroutine[Any, Any, Any], end: tuple[str | int, ...], said: bytes
) -> None:
    try:
        await asked
    except (ValkeyGone, OSError, ResponseError) as error:
        log.warning("the end of a request waits for Valkey", error=str(error))
        gate.settle_later((scripts.SETTLE, *end, b"", 0))
        if said:
            await _write_directly(said)


async def _nothing() -> None:
    """There is nothing to wait for."""


def leave(said: bytes) -> Coroutine[Any, Any, None]:
    """Leave the record of a request that wasn't let in. Raises nothing."""
    return _settle(gate(), ("", 0, 0, ""), said)


@database_sync_to_async
def _write_directly(said: bytes) -> None:
    """A record that can't be written must not cost an answer that was."""
    try:
        drain.write_directly([said])
    except (DatabaseError, InterfaceError) as error:
        log.error("a usage record is lost", error=str(error))


def _in_line(place: int, expected_s: float) -> str:
    """The place as a person reads it."""
    if place < 1:
        return "waiting"
    ending = "th" if 10 <= place % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    about = f", about {max(1, round(expected_s))} s" if expected_s > 0 else ""
    return f"waiting, {place}{ending} in line{about}"


async def admit(ask: Ask) -> Ticket:
    """Let a request in: its reservation and a slot, or why not. Cancelled or refused, it leaves nothing behind.

    Raises `LimitReached`, `QueueFull`, `NotServed`, `ModelNotFound`, `ContextExceeded`, `NotAuthenticated`,
    `NotAllowed` or `Unavailable`.
    """
    ask.caller.require_inference()
    ticket = Ticket(ask, gate())
    try:
        await ticket.enter()
    except BaseException:
        await asyncio.shield(ticket.close())
        raise
    return ticket
