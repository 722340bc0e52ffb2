"""The relay's end in a generator process: one writer, one shared tick for all its answers."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
import structlog
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from chat.relay import (
    RETRY_S,
    UNFINISHED_TTL_S,
    WATCH_CHANNEL,
    Delta,
    stream_key,
    watchers_key,
    web_channel,
)
from chat.states import MessageStatus

log = structlog.get_logger(__name__)

# Longer ticks save little and are felt; shorter ones cost half again (measured, see docs/adr/0001-relay.md).
TICK_S = 0.033
# Older text is in Postgres: checkpoints are a second apart.
_STREAM_ENTRIES = 2000
_FINISHED_TTL_S = 60

# One command for everything a tick has to say costs a third of one for each (docs/adr/0001-relay.md).
# KEYS: streams and sets. ARGV: for each of them an entry's id, its text and a time to live (text and time may be
# missing: "" and 0); then channels and what to publish there. Returns how many heard each publication.
_SEND = f"""
for i, key in ipairs(KEYS) do
  local id, text, ttl = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  if text ~= '' then
    local done = redis.pcall('XADD', key, 'MAXLEN', '~', {_STREAM_ENTRIES}, id, 't', text)
    -- An entry that is there already was sent by a try whose answer got lost.
    if type(done) == 'table' and done.err and not string.find(done.err, 'equal or smaller', 1, true) then
      return done
    end
  end
  if ttl ~= '0' then redis.call('EXPIRE', key, ttl) end
end
local heard = {{}}
for i = 3 * #KEYS + 1, #ARGV, 2 do heard[#heard + 1] = redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end
return heard
"""


@dataclass
class Outgoing:
    """What of one generation still has to be sent. The generator appends, the writer's tick takes.

    `valid_until` (monotonic seconds) is the end of the generator's lease: a process paused past it must not send.
    """

    generation: str
    sent: int
    pending: list[str] = field(default_factory=list)
    status: MessageStatus = MessageStatus.QUEUED
    progress: str = ""
    final: bool = False
    changed: bool = False
    watchers: set[str] = field(default_factory=set)
    valid_until: float = float("inf")


class LogWriter:
    """The one writer of a generator process: a shared tick, one command for all generations' new text."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._open: dict[str, Outgoing] = {}
        self._due = asyncio.Event()
        self._urgent = asyncio.Event()

    @cached_property
    def _send(self) -> AsyncScript:
        return self._redis.register_script(_SEND)

    async def open(self, generation: str, *, offset: int) -> Outgoing:
        """Begin or take over a generation whose text so far ends at `offset`."""
        outgoing = Outgoing(generation, sent=offset)
        self._open[generation] = outgoing
        await self._learn_watchers([outgoing])
        return outgoing

    def write(self, outgoing: Outgoing, text: str) -> None:
        """Send `text` with the next tick; at once if it is the answer's first."""
        first = outgoing.sent == 0 and not outgoing.pending
        outgoing.pending.append(text)
        self._touch(outgoing, urgent=first)

    def tell(self, outgoing: Outgoing, status: MessageStatus, progress: str) -> None:
        """Send how the generation stands."""
        if (status, progress) != (outgoing.status, outgoing.progress):
            urgent = status != outgoing.status
            outgoing.status, outgoing.progress = status, progress
            self._touch(outgoing, urgent=urgent)

    def close(self, outgoing: Outgoing, status: MessageStatus) -> None:
        """Send what is left and the end, at once."""
        outgoing.status, outgoing.progress, outgoing.final = status, "", True
        # PostgreSQL has accepted the end as this generator's: nobody else can say anything else.
        outgoing.valid_until = float("inf")
        self._touch(outgoing, urgent=True)

    def abandon(self, outgoing: Outgoing) -> None:
        """Say nothing more of it: another generator has taken it over."""
        self._open.pop(outgoing.generation, None)

    def _touch(self, outgoing: Outgoing, *, urgent: bool) -> None:
        outgoing.changed = True
        self._due.set()
        if urgent:
            self._urgent.set()

    async def run(self) -> None:
        """Send until cancelled. A failing Valkey delays text; it doesn't lose any."""
        listener = asyncio.create_task(self._listen(), name="relay-watchers")
        sent_at = float("-inf")
        try:
            while True:
                await self._due.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, sent_at + TICK_S - time.monotonic())):
                        await self._urgent.wait()
                self._due.clear()
                self._urgent.clear()
                sent_at = time.monotonic()
                try:
                    await self._flush()
                except (RedisError, OSError) as error:
                    log.warning("relay is waiting for Valkey", error=str(error))
                    await asyncio.sleep(RETRY_S)
                    self._due.set()
        finally:
            listener.cancel()

    async def drain(self, grace_s: float) -> None:
        """Send what is left, once `run` has ended; give up after `grace_s`."""
        with contextlib.suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(grace_s):
                await self._flush()

    async def _flush(self) -> None:
        now = time.monotonic()
        batch = [one for one in self._open.values() if one.changed and now < one.valid_until]
        if not batch:
            return
        by_web: dict[str, list[Delta]] = {}
        taken: list[tuple[Outgoing, int, str, bool]] = []
        keys: list[str] = []
        arguments: list[str | bytes | int] = []
        for one in batch:
            count, text = len(one.pending), "".join(one.pending)
            ttl_s = _FINISHED_TTL_S if one.final else UNFINISHED_TTL_S if one.sent == 0 else 0
            if text or ttl_s:
                keys.append(stream_key(one.generation))
                arguments += (f"{one.sent + len(text)}-0", text, ttl_s)
            if one.final:
                keys.append(watchers_key(one.generation))
                arguments += ("", "", ttl_s)
            delta = Delta(one.generation, one.sent, text, one.status, one.progress, one.final)
            for web in one.watchers:
                by_web.setdefault(web, []).append(delta)
            taken.append((one, count, text, one.final))
            one.changed = False
        for web, deltas in by_web.items():
            arguments += (web_channel(web), orjson.dumps([tuple(delta) for delta in deltas]))
        try:
            heard: Any = await self._send(keys=keys, args=arguments)
        except BaseException:
            for one in batch:
                one.changed = True
            raise
        for one, count, text, final in taken:
            del one.pending[:count]
            one.sent += len(text)
            if final:
                self._open.pop(one.generation, None)
        self._forget_dead(list(by_web), heard)

    def _forget_dead(self, webs: list[str], receivers: list[int]) -> None:
        for web, count in zip(webs, receivers, strict=True):
            if count == 0:
                for one in self._open.values():
                    one.watchers.discard(web)

    async def _listen(self) -> None:
        """Hear of new watchers; after a lost connection, ask for all of them."""
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(WATCH_CHANNEL)
                    await self._learn_watchers(list(self._open.values()))
                    async for message in pubsub.listen():
                        if message["type"] == "message":
                            generation, web = orjson.loads(message["data"])
                            if generation in self._open:
                                self._open[generation].watchers.add(web)
                                # What is waited for is in no stream: it is said once more.
                                self._touch(self._open[generation], urgent=False)
            except (RedisError, OSError) as error:
                log.warning("relay has lost its watchers' channel", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _learn_watchers(self, outgoing: list[Outgoing]) -> None:
        if not outgoing:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for one in outgoing:
            pipeline.smembers(watchers_key(one.generation))
        try:
            for one, webs in zip(outgoing, await pipeline.execute(), strict=True):
                one.watchers |= {web.decode() for web in webs}
        except (RedisError, OSError) as error:
            log.warning("relay can't read its watchers", error=str(error))
