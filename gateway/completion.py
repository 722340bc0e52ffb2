"""One path for chat and API: admit → route → stream → record.

    async with completion.run(call) as stream:
        async for block in stream.blocks(): ...

Leaving the block closes the connection to llama-server (its slot is free at once) and writes one usage record, however
the block was left.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import structlog
from channels.db import database_sync_to_async

from gateway import admission, context, dialect, prompt, sse
from gateway.admission import Ask, Caller, Ticket, Waiting
from gateway.continuation import Continuation, Rest
from gateway.errors import CircularRoute, ModelNotFound, UpstreamLost
from gateway.meter import Meter, parse
from gateway.models import UsageRecord
from gateway.replica import Replica
from gateway.upstream import erase_slot, open_answer
from gateway.usage import record
from llamaproj.errors import LlamaProjError, NotAllowed, NotAuthenticated
from models_admin import tasks
from models_admin.external import tasks as external_tasks

__all__ = ["Call", "Meter", "Stream", "parse", "run"]

log = structlog.get_logger(__name__)

CHAT = "chat/completions"
# Those that are not below /v1 at llama-server.
_TOP_LEVEL = frozenset({"tokenize", "apply-template"})
# Those whose prompt is read in a slot that the portal chooses.
_IN_SLOTS = frozenset({CHAT, "completions", "responses"})
_NOT_OURS = (ModelNotFound, NotAuthenticated, NotAllowed)
_ENDED = frozenset({UsageRecord.Finish.STOP, UsageRecord.Finish.LENGTH, UsageRecord.Finish.TOOL_CALLS})
# How often a request that has produced nothing yet is tried again, unseen by the client.
_TRIES = 3
# Portals may serve each other's models, but not in a circle.
_HOPS_MAX = 4


@dataclass(frozen=True)
class Call:
    """Who wants what.

    `endpoint` is the path below /v1, and `body` the request as the OpenAI API has it; `patience_s` bounds the wait for
    a replica; replicas in `avoid` have just failed the caller. `hops` counts the portals that have passed it on.
    `thread` names what the prompt begins with, where somebody knows that better than the prompt. `on_revoked` is told
    when the caller has lost their rights and the answer ends for it.
    """

    caller: Caller
    slug: str
    door: UsageRecord.Door
    body: dict[str, Any]
    endpoint: str = CHAT
    patience_s: float = 30.0
    avoid: frozenset[UUID] = frozenset()
    hops: int = 0
    request_id: str = ""
    thread: str = ""
    on_wait: Callable[[Waiting], None] = lambda waiting: None
    on_revoked: Callable[[], None] = lambda: None

    @property
    def path(self) -> str:
        """The endpoint's path at a model's server."""
        return f"/{self.endpoint}" if self.endpoint in _TOP_LEVEL else f"/v1/{self.endpoint}"

    @property
    def is_streamed(self) -> bool:
        """Whether the answer comes in events."""
        return bool(self.body.get("stream"))

    def ask(self) -> Ask:
        """What admission has to know of it."""
        size = prompt.size_of(self.endpoint, self.body)
        return Ask(
            self.caller,
            self.slug,
            prompt_tokens=size.prompt_tokens,
            completion_tokens=size.completion_tokens,
            prompt_bytes=size.prompt_bytes,
            patience_s=self.patience_s,
            thread=self.thread or prompt.thread_of(self.body),
            avoid=self.avoid,
            light=self.endpoint in _TOP_LEVEL,
            on_wait=self.on_wait,
        )


class Stream:
    """An answer on its way, with its meter and the replica that writes it."""

    def __init__(self, call: Call, ticket: Ticket, meter: Meter) -> None:
        self._call = call
        self._ticket = ticket
        ticket.ask.on_revoked = self._revoke
        self._revoked: LlamaProjError | None = None
        self._opening: asyncio.Task[None] | None = None
        self._upstream: dialect.Source | None = None
        self._first = b""
        self.meter = meter
        self.settling: asyncio.Task[None] | None = None

    @property
    def replica(self) -> Replica:
        """Who writes it."""
        return self._ticket.replica

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer's headers say of limits."""
        return self._ticket.headers

    async def open(self, body: dict[str, Any]) -> None:
        """Connect and wait for the first events, or for the whole answer, trying other replicas while there is none."""
        self._opening = asyncio.current_task()
        try:
            await self._open(body)
        except asyncio.CancelledError:
            if self._revoked is None or self._opening is None:
                raise
            self._opening.uncancel()
            raise self._revoked from None
        finally:
            self._opening = None

    async def _open(self, body: dict[str, Any]) -> None:
        if self._revoked is not None:
            raise self._revoked
        for left in reversed(range(_TRIES)):
            self.meter.routed, self.meter.load_ms = time.monotonic(), self._ticket.load_ms
            try:
                await self._open_once(body)
            except UpstreamLost:
                self.close()
                await _look_after(self.replica)
                if not left:
                    raise
                await self._ticket.move(lost=True)
            else:
                return

    async def _open_once(self, body: dict[str, Any]) -> None:
        call, replica = self._call, self.replica
        asked = dialect.request_body(replica, body)
        slot = self._ticket.slot
        if slot is not None and call.endpoint in _IN_SLOTS and asked.get("n") in (None, 1):
            asked["id_slot"] = slot
        if slot is not None and self._ticket.is_fresh:
            # It was somebody else's: nothing of it may be read, not even in how fast the answer comes.
            await erase_slot(replica, slot)
            asked["cache_prompt"] = False
        if replica.is_strict and "id_slot" not in asked:
            asked["cache_prompt"] = False
        if most_tokens := self._ticket.right.context_tokens:
            await context.fit(replica, call.endpoint, asked, most_tokens)
        upstream = await open_answer(replica, call.path, asked, hops=call.hops)
        self._upstream = dialect.source(upstream, replica, body, self.meter.see)
        self._first = await (self._upstream.block() if call.is_streamed else self._upstream.whole())

    async def blocks(self) -> AsyncIterator[bytes]:
        """The answer's events as they come, several at a time when they come so; where the replica dies and the call
        allows it, another one goes on. Raises `UpstreamLost`, or what the server says in mid-stream."""
        so_far = Continuation(self._call.body) if self._may_go_on else None
        block = self._first
        while block:
            self.meter.see(block)
            self._ticket.completion_tokens = self.meter.completion_tokens
            if so_far is not None:
                so_far.see(block)
            yield block
            try:
                block = await self._upstream.block() if self._upstream is not None else b""
            except UpstreamLost as lost:
                if self._revoked is not None:
                    raise self._revoked from None
                if so_far is None:
                    raise
                block = await self._go_on(so_far, lost)
        self.meter.succeed()

    @property
    def _may_go_on(self) -> bool:
        """Only a llama-server is known to go on after an assistant's words; the chat sees to its answers itself."""
        call = self._call
        return call.endpoint == CHAT and call.door == UsageRecord.Door.API and self.replica.external is None

    async def _go_on(self, so_far: Continuation, lost: UpstreamLost) -> bytes:
        """The next events from another replica. Raises `lost` where there can't be any."""
        self.close()
        body = so_far.request()
        if so_far.is_finished or (body is not None and so_far.is_full):
            prompt_tokens = await self._prompt_tokens() if so_far.lacks_usage else 0
            return so_far.last_events(prompt_tokens, self.meter.cached_tokens)
        if body is None:
            raise lost
        log.warning("an answer goes on elsewhere", instance=str(self.replica.pk), tokens=so_far.tokens)
        self.meter.lose()
        try:
            await _look_after(self.replica)
            await self._ticket.move(lost=True)
            await self.open(body)
        except LlamaProjError as error:
            raise (self._revoked or lost) from error
        assert self._upstream is not None
        self._upstream = Rest(self._upstream, so_far)
        return so_far.rewrite(self._first) or await self._upstream.block()

    async def _prompt_tokens(self) -> int:
        """The prompt's tokens where the replica that read it can't tell any more: as another one counts them, else as
        they were estimated."""
        if self.meter.prompt_tokens:
            return self.meter.prompt_tokens
        others = (one for pk, one in self._ticket.model.ready.items() if pk != self.replica.pk)
        other = next(others, None)
        counted = (
            await context.count(other, self._call.endpoint, self._call.body) if other is not None else None
        )
        return self._ticket.ask.prompt_tokens if counted is None else counted

    async def payloads(self) -> AsyncIterator[bytes]:
        """The JSON of every event. Raises the same."""
        async for block in self.blocks():
            for payload in sse.payloads(block):
                if payload != sse.DONE:
                    yield payload

    def whole(self) -> bytes:
        """The JSON of an answer that isn't streamed. Raises `UpstreamLost`."""
        self.meter.see_end(parse(self._first))
        self.meter.succeed()
        return self._first

    def _revoke(self, error: LlamaProjError) -> None:
        """The caller has no right to it any more."""
        self._revoked = error
        if self._opening is not None:
            # The first word, or a whole answer, may be long in coming; no other replica is asked for it.
            self._opening.cancel()
        elif self._upstream is not None:
            self._upstream.close()
            # Who is writing to a client that reads no more sees it only when that connection ends.
            if self.meter.finish == UsageRecord.Finish.CANCELLED:
                self.meter.fail(error)
            self.settling = asyncio.create_task(
                _settle(self._call, self.meter, self._ticket), name="settle-revoked"
            )
        self._call.on_revoked()

    def close(self) -> None:
        """Close the connection to the replica."""
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None


@asynccontextmanager
async def run(call: Call) -> AsyncIterator[Stream]:
    """Open the call's answer.

    Raises what `admission.admit` does, and `NotSupported`, `UpstreamRefused`, `UpstreamBusy`, `UpstreamLost` or
    `CircularRoute`.
    """
    if call.hops > _HOPS_MAX:
        raise CircularRoute
    meter = Meter()
    ticket: Ticket | None = None
    stream: Stream | None = None
    try:
        ticket = await admission.admit(call.ask())
        stream = Stream(call, ticket, meter)
        try:
            await stream.open(call.body)
            yield stream
        finally:
            stream.close()
    except LlamaProjError as error:
        meter.fail(error)
        raise
    finally:
        if stream is not None and stream.settling is not None:
            await asyncio.shield(stream.settling)
        # What strangers guess, who are nobody or ask for nothing that is here, fills no table.
        elif ticket is not None or not isinstance(meter.error, _NOT_OURS):
            await asyncio.shield(_settle(call, meter, ticket))


def _settle(call: Call, meter: Meter, ticket: Ticket | None) -> Coroutine[Any, Any, None]:
    """Give back what was reserved, and leave the record. Both are on their way before anybody awaits it."""
    row = record.Record(
        id=ticket.id if ticket else uuid4(),
        user=call.caller.user_pk,
        api_key=call.caller.api_key_pk,
        team=call.caller.team_pk,
        served=ticket.model.pk if ticket else None,
        instance=ticket.replica.pk if ticket else None,
        model_slug=call.slug,
        door=call.door,
        endpoint=call.endpoint,
        request_id=call.request_id,
        finish=meter.finish,
        error_code=meter.error.code if meter.error else "",
        status=meter.error.status if meter.error else 200,
        prompt_tokens=meter.prompt_tokens or _unsaid_prompt(meter, ticket),
        completion_tokens=meter.completion_tokens,
        cached_tokens=meter.cached_tokens,
        queue_ms=meter.queue_ms,
        load_ms=meter.load_ms,
        prefill_ms=meter.prefill_ms,
        first_token_ms=meter.first_token_ms,
        decode_ms=meter.decode_ms,
        total_ms=(time.monotonic() - meter.arrived) * 1000,
    )
    if ticket is None:
        return admission.leave(row.encode())
    outcome = "lost" if isinstance(meter.error, UpstreamLost) else "ok" if meter.finish in _ENDED else ""
    return ticket.close(row.encode(), row.prompt_tokens, row.completion_tokens, outcome=outcome)


def _unsaid_prompt(meter: Meter, ticket: Ticket | None) -> int:
    """The prompt's tokens as they were estimated, where the end that counts them never came: who hangs up before it
    pays for what was read."""
    was_read = meter.first_token is not None or (meter.routed is not None and meter.error is None)
    return ticket.ask.prompt_tokens if ticket is not None and was_read and not ticket.ask.light else 0


@database_sync_to_async
def _look_after(replica: Replica) -> None:
    """Have somebody look at the replica that was lost."""
    if replica.external is None:
        tasks.wake_all()
    else:
        external_tasks.check_soon(replica.external.pk)
