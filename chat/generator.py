"""The generator process: claims generations, writes their answers, renews leases, takes checkpoints.

Woken through Valkey at once; polling makes sure. At an orderly end it gives its generations back unfinished, and
another generator continues them.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID, uuid4

import structlog
from channels.db import database_sync_to_async
from django.db import DatabaseError, InterfaceError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chat import events, leases
from chat.generation import Answer
from chat.models import Generation
from chat.relay import assemble, read_stream
from chat.relay_writer import LogWriter, Outgoing
from chat.states import MessageStatus
from gateway import admission
from gateway.upstream import close_session
from gateway.valkey import client

log = structlog.get_logger(__name__)

MAX_OPEN = 512
_POLL_S = 1.0
_CHECKPOINT_S = 1.0
_RETRY_S = 1.0
_DRAIN_S = 1.0
_CANCEL_AGAIN_S = 0.5


class Generator:
    """All answers of one generator process."""

    def __init__(self, redis: "Redis") -> None:
        self.owner = uuid4()
        self._redis = redis
        self._writer = LogWriter(redis)
        self._open: dict[UUID, Answer] = {}
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._renewed_at: dict[UUID, float] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set, then give everything back. A loop that fails ends the process, loudly."""
        loops = [
            asyncio.create_task(self._writer.run(), name="relay-writer"),
            asyncio.create_task(self._forever(self._claim_when_woken), name="claim"),
            asyncio.create_task(self._forever(self._renew), name="renew"),
            asyncio.create_task(self._forever(self._checkpoint), name="checkpoint"),
            asyncio.create_task(self._forever(self._listen), name="listen"),
        ]
        stop = asyncio.create_task(stopping.wait(), name="stopping")
        try:
            ended, _ = await asyncio.wait({stop, *loops}, return_when=asyncio.FIRST_COMPLETED)
            for task in ended - {stop}:
                task.result()
        finally:
            await _end(stop, *loops)
            await self._give_back()
            await self._writer.drain(_DRAIN_S)

    async def _forever(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Repeat a step; a database or Valkey that is away for a while doesn't end the process."""
        while True:
            try:
                await step()
            except (DatabaseError, InterfaceError, RedisError, OSError) as error:
                log.warning("generator waits for its services", step=step.__name__, error=str(error))
                await asyncio.sleep(_RETRY_S)

    async def _claim_when_woken(self) -> None:
        room = MAX_OPEN - len(self._tasks)
        asked_at = time.monotonic()
        taken: list[UUID] = []
        if room > 0:
            mine = list(self._tasks)
            taken = await database_sync_to_async(leases.claim)(self.owner, room, besides=mine)
        for generation in taken:
            self._renewed_at[generation] = asked_at
            task = asyncio.create_task(self._write(generation), name=f"answer-{generation}")
            self._tasks[generation] = task
        if taken and len(taken) == room:
            return
        try:
            async with asyncio.timeout(_POLL_S):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _listen(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(events.WAKE_CHANNEL, events.STOP_CHANNEL)
            self._wake.set()
            async for message in pubsub.listen():
                if message["type"] != "message":
                    continue
                if message["channel"].decode() == events.WAKE_CHANNEL:
                    self._wake.set()
                elif answer := self._open.get(UUID(message["data"].decode())):
                    answer.stop()

    async def _renew(self) -> None:
        await asyncio.sleep(leases.RENEW_S)
        mine = list(self._tasks)
        if not mine:
            return
        asked_at = time.monotonic()
        renewal = await database_sync_to_async(leases.renew)(self.owner, mine)
        for generation in mine:
            answer = self._open.get(generation)
            if generation in renewal.held:
                self._hold(generation, asked_at)
            elif answer is not None:
                self._lose(generation)
            if generation in renewal.stop and answer is not None:
                answer.stop()

    def _hold(self, generation: UUID, since: float) -> None:
        """The lease was asked for at `since` on this process's clock: it can't run out before its length has passed."""
        self._renewed_at[generation] = since
        if answer := self._open.get(generation):
            answer.outgoing.valid_until = since + leases.LEASE_S

    def _lose(self, generation: UUID) -> None:
        """Somebody else holds it now: say nothing more."""
        log.warning("lease lost", generation=str(generation))
        self._open.pop(generation, None)
        if task := self._tasks.get(generation):
            task.cancel()

    async def _checkpoint(self) -> None:
        await asyncio.sleep(_CHECKPOINT_S)
        stale_before = time.monotonic() - leases.LEASE_S
        for generation in [one for one in self._open if self._renewed_at[one] < stale_before]:
            self._lose(generation)
        changed = {
            generation: answer
            for generation, answer in self._open.items()
            if answer.checkpointed_chars != len(answer.text)
        }
        texts = {generation: (answer.text, answer.status) for generation, answer in changed.items()}
        await database_sync_to_async(leases.checkpoint)(self.owner, texts)
        for generation, answer in changed.items():
            answer.checkpointed_chars = len(texts[generation][0])

    async def _write(self, generation: UUID) -> None:
        """One answer from claim to end."""
        outgoing: Outgoing | None = None
        try:
            job = await database_sync_to_async(leases.load)(generation)
            text = job.text
            if job.attempts > 1:
                text = assemble(text, await read_stream(self._redis, str(generation)))
            outgoing = await self._writer.open(str(generation), offset=len(text))
            answer = self._open[generation] = Answer(job, outgoing, text)
            self._hold(generation, self._renewed_at[generation])
            if job.stop_requested:
                answer.stop()
            outcome = await answer.write(self._writer)
            # From here on its end is ours to write; losing the lease now is found out by `finish`.
            self._open.pop(generation, None)
            while True:
                try:
                    finished = await database_sync_to_async(leases.finish)(
                        self.owner, generation, outcome.status, model_slug=_slug(job), **outcome.fields
                    )
                    break
                except (DatabaseError, InterfaceError) as error:
                    log.warning("the end of an answer waits for the database", error=str(error))
                    await asyncio.sleep(_RETRY_S)
            if finished:
                self._writer.close(outgoing, outcome.status)
        except Generation.DoesNotExist:
            # Its conversation was deleted between claim and load.
            pass
        except (DatabaseError, InterfaceError, RedisError, OSError) as error:
            # The lease runs out and the generation is claimed again.
            log.warning("answer put back", generation=str(generation), error=str(error))
        finally:
            if outgoing is not None and not outgoing.final:
                self._writer.abandon(outgoing)
            self._open.pop(generation, None)
            self._tasks.pop(generation, None)
            self._renewed_at.pop(generation, None)

    async def _give_back(self) -> None:
        unfinished = {
            generation: (answer.text, answer.status)
            for generation, answer in self._open.items()
            if answer.status != MessageStatus.QUEUED
        }
        mine = list(self._tasks)
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if not mine:
            return
        try:
            await database_sync_to_async(leases.checkpoint)(self.owner, unfinished)
            await database_sync_to_async(leases.release)(self.owner, mine)
            await self._redis.publish(events.WAKE_CHANNEL, b"")
        except (DatabaseError, InterfaceError, RedisError, OSError) as error:
            log.warning("generations could not be given back; their leases will run out", error=str(error))


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them until they have ended.

    redis-py sends within `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes at the moment in
    which what it waits for is done (CPython's issue 86296).
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


def _slug(job: leases.Job) -> str:
    return job.served.slug if job.served else ""


async def main() -> None:
    """Run a generator until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    redis = client()
    generator = Generator(redis)
    admission.start()
    log.info("generator ready", owner=str(generator.owner), pid=os.getpid())
    try:
        await generator.run(stopping)
    finally:
        await admission.stop()
        await close_session()
        await redis.aclose()
