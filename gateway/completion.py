"""One path for chat and API: admit → route → stream → record.

    async with completion.run(call) as stream:
        async for payload in stream.payloads(): ...

Leaving the block closes the connection to llama-server (its slot is free at once) and writes one usage record, however
the block was left.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson
import structlog
from channels.db import database_sync_to_async
from django.db import DatabaseError, InterfaceError

from accounts.models import ApiKey, User
from gateway import dialect, routing
from gateway.errors import CircularRoute, UpstreamLost
from gateway.models import UsageRecord
from gateway.upstream import open_completion
from llamaproj.errors import LlamaProjError
from models_admin import tasks
from models_admin.external import tasks as external_tasks
from models_admin.models import Instance, ServedModel

log = structlog.get_logger(__name__)

CHAT_PATH = "/v1/chat/completions"
# How often a request that has produced nothing yet is tried again, unseen by the client.
_TRIES = 3
# Portals may serve each other's models, but not in a circle.
_HOPS_MAX = 4


def parse(payload: bytes) -> dict[str, Any]:
    """A chunk or an answer of a model's server. Raises `UpstreamLost` for what can't be one."""
    try:
        chunk = orjson.loads(payload)
    except orjson.JSONDecodeError:
        chunk = None
    if not isinstance(chunk, dict):
        raise UpstreamLost("The model's server answered with garbage.")
    return chunk


@dataclass(frozen=True)
class Call:
    """Who wants what.

    `body` is the request as the OpenAI API has it; `patience_s` bounds the wait for a replica; replicas in `avoid` have
    just failed the caller. `hops` counts the portals that have passed it on.
    """

    user: User
    served: ServedModel
    door: UsageRecord.Door
    body: dict[str, Any]
    api_key: ApiKey | None = None
    path: str = CHAT_PATH
    patience_s: float = 30.0
    avoid: frozenset[UUID] = frozenset()
    hops: int = 0
    on_wait: Callable[[str], None] = lambda word: None


@dataclass
class Meter:
    """What a request took, in tokens and milliseconds; filled while it runs."""

    arrived: float = field(default_factory=time.monotonic)
    routed: float | None = None
    first_token: float | None = None
    finish: UsageRecord.Finish = UsageRecord.Finish.CANCELLED
    finish_reason: str = ""
    error: LlamaProjError | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0

    @property
    def queue_ms(self) -> float:
        """From arrival to a replica."""
        return ((self.routed or time.monotonic()) - self.arrived) * 1000

    @property
    def first_token_ms(self) -> float | None:
        """From arrival to the first token."""
        return None if self.first_token is None else (self.first_token - self.arrived) * 1000

    def see(self, payload: bytes) -> None:
        """Note what a streamed chunk says, parsing only the few that say something."""
        if b'"prompt_progress"' in payload:
            return
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.completion_tokens += 1
        if b'"timings"' in payload or b'"finish_reason":"' in payload or b'"usage":{' in payload:
            self.see_end(parse(payload))

    def see_end(self, chunk: dict[str, Any]) -> None:
        """Note the finish reason and llama-server's `timings`, of others `usage`: of a last chunk or a whole answer."""
        for choice in chunk.get("choices") or ():
            if reason := choice.get("finish_reason"):
                self.finish_reason = reason
                known = reason in UsageRecord.Finish.values
                self.finish = UsageRecord.Finish(reason) if known else UsageRecord.Finish.STOP
        if timings := chunk.get("timings"):
            self.cached_tokens = timings.get("cache_n", 0)
            self.prompt_tokens = self.cached_tokens + timings.get("prompt_n", 0)
            self.completion_tokens = timings.get("predicted_n", 0)
            self.prefill_ms = timings.get("prompt_ms", 0.0)
            self.decode_ms = timings.get("predicted_ms", 0.0)
        elif usage := chunk.get("usage"):
            self._see_usage(usage)

    def _see_usage(self, usage: dict[str, Any]) -> None:
        """Tokens as an external server counts them; times by this clock, the way there included."""
        details = usage.get("prompt_tokens_details")
        self.cached_tokens = dialect.count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        self.prompt_tokens = dialect.count(usage.get("prompt_tokens"))
        self.completion_tokens = dialect.count(usage.get("completion_tokens"))
        if self.first_token is not None and self.routed is not None:
            self.prefill_ms = (self.first_token - self.routed) * 1000
            self.decode_ms = (time.monotonic() - self.first_token) * 1000


class Stream:
    """A completion on its way, with its meter and the replica that writes it."""

    def __init__(self, upstream: dialect.Source, instance: Instance, meter: Meter) -> None:
        self._upstream = upstream
        self._chunks = upstream.payloads()
        self._first: bytes | None = None
        self.instance = instance
        self.meter = meter

    async def wait_for_first(self) -> None:
        """Return once the first chunk is here. Raises `UpstreamLost`: then nothing has been seen by anybody."""
        self._first = await anext(self._chunks, None)

    async def payloads(self) -> AsyncIterator[bytes]:
        """The JSON of every chunk. Raises `UpstreamLost`."""
        if self._first is not None:
            self.meter.see(self._first)
            yield self._first
        async for payload in self._chunks:
            self.meter.see(payload)
            yield payload

    async def whole(self) -> bytes:
        """The JSON of an answer that isn't streamed. Raises `UpstreamLost`."""
        body = await self._upstream.whole()
        self.meter.see_end(parse(body))
        return body


@asynccontextmanager
async def run(call: Call) -> AsyncIterator[Stream]:
    """Open the call's completion.

    Raises `NotServed`, `ContextExceeded`, `UpstreamRefused`, `UpstreamBusy`, `UpstreamLost` or `CircularRoute`.
    """
    meter = Meter()
    instance: Instance | None = None
    try:
        async with AsyncExitStack() as stack:
            stream = await _open(call, meter, stack)
            instance = stream.instance
            yield stream
    except LlamaProjError as error:
        meter.error, meter.finish = error, UsageRecord.Finish.ERROR
        raise
    finally:
        await asyncio.shield(_record_safely(call, meter, instance))


async def _record_safely(call: Call, meter: Meter, instance: Instance | None) -> None:
    """A record that can't be written must not cost an answer that was."""
    try:
        await _record(call, meter, instance)
    except (DatabaseError, InterfaceError) as error:
        log.error("usage record lost", model=call.served.slug, error=str(error))


async def _open(call: Call, meter: Meter, stack: AsyncExitStack) -> Stream:
    """Route and connect, trying other replicas while no chunk has come."""
    if call.hops > _HOPS_MAX:
        raise CircularRoute
    avoid = call.avoid
    for left in reversed(range(_TRIES)):
        instance = await routing.pick(
            call.served.pk, avoid=avoid, patience_s=call.patience_s, on_wait=call.on_wait
        )
        meter.routed = time.monotonic()
        attempt = AsyncExitStack()
        try:
            attempt.enter_context(routing.occupied(instance))
            upstream = await attempt.enter_async_context(
                open_completion(
                    instance, call.path, dialect.request_body(instance, call.body), hops=call.hops
                )
            )
            stream = Stream(dialect.source(upstream, instance, call.body, meter.see), instance, meter)
            if call.body.get("stream"):
                await stream.wait_for_first()
        except UpstreamLost:
            await attempt.aclose()
            await _look_after(instance)
            if not left:
                raise
            avoid |= {instance.pk}
        except BaseException:
            await attempt.aclose()
            raise
        else:
            stack.push_async_callback(attempt.aclose)
            return stream
    raise AssertionError("the last try returns or raises")


@database_sync_to_async
def _look_after(instance: Instance) -> None:
    """Have somebody look at the replica that was lost."""
    if instance.served.external_id is None:
        tasks.wake_all()
    else:
        external_tasks.check_soon(instance.served.external_id)


@database_sync_to_async
def _record(call: Call, meter: Meter, instance: Instance | None) -> None:
    UsageRecord.objects.create(
        user=call.user,
        api_key=call.api_key,
        served=call.served,
        instance=instance,
        model_slug=call.served.slug,
        door=call.door,
        finish=meter.finish,
        error_code=meter.error.code if meter.error else "",
        status=meter.error.status if meter.error else 200,
        prompt_tokens=meter.prompt_tokens,
        completion_tokens=meter.completion_tokens,
        cached_tokens=meter.cached_tokens,
        queue_ms=meter.queue_ms,
        prefill_ms=meter.prefill_ms,
        first_token_ms=meter.first_token_ms,
        decode_ms=meter.decode_ms,
        total_ms=(time.monotonic() - meter.arrived) * 1000,
    )
