"""The relay's end in a web process: one reader, one subscription for all its sockets."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import orjson
import structlog
from django.db import DatabaseError, InterfaceError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chat.relay import (
    RETRY_S,
    UNFINISHED_TTL_S,
    WATCH_CHANNEL,
    Delta,
    assemble,
    read_stream,
    watchers_key,
    web_channel,
)
from chat.states import MessageStatus

log = structlog.get_logger(__name__)


class Checkpoints(Protocol):
    """Where the durable state of a generation is read: Postgres."""

    async def __call__(self, generation: str) -> "Checkpoint | None":
        """The generation as last written; None if it doesn't exist."""


@dataclass(frozen=True)
class Checkpoint:
    """A generation as Postgres has it."""

    text: str
    status: MessageStatus
    final: bool


class Feed:
    """One generation as this web process knows it, and who wants to hear of it."""

    def __init__(self, generation: str) -> None:
        self.generation = generation
        self.text = ""
        self.status = MessageStatus.QUEUED
        self.progress = ""
        self.final = False
        self.listeners: set[Callable[[], None]] = set()
        self.heard_at = time.monotonic()
        self.loaded = asyncio.Event()
        self.repairing = asyncio.Lock()

    def take(self, delta: Delta) -> bool:
        """Apply a delta: equal offset → append, smaller → slice, larger → False: a gap the caller must close first."""
        if delta.offset > len(self.text):
            return False
        self.text += delta.text[len(self.text) - delta.offset :]
        self.status, self.progress = MessageStatus(delta.status), delta.progress
        self.final = self.final or delta.final
        return True

    def announce(self) -> None:
        """Wake every listener; each looks at the feed when it is ready to."""
        self.heard_at = time.monotonic()
        for wake in tuple(self.listeners):
            wake()


F = TypeVar("F", bound=Feed)


class Hub(Generic[F]):
    """The one reader of a web process: one subscription for all its sockets, one `Feed` a watched generation.

    Whatever goes wrong (a missed publication, an emptied Valkey, a writer that died), the same repair closes the gap:
    read the checkpoint and the stream, and continue from there.
    """

    def __init__(self, redis: "Redis", web: str, checkpoints: Checkpoints, feed: type[F]) -> None:
        self._redis = redis
        self._web = web
        self._checkpoints = checkpoints
        self._make_feed = feed
        self._feeds: dict[str, F] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._subscribed = asyncio.Event()

    async def watch(self, generation: str, wake: Callable[[], None]) -> F:
        """Begin to listen; returns the feed, loaded. `wake` is called, without arguments, whenever it has news."""
        if not self._started:
            self._started = True
            self._spawn(self._listen(), "relay-reader")
            self._spawn(self._mend(), "relay-mender")
        feed = self._feeds.get(generation)
        if feed is None:
            feed = self._feeds[generation] = self._make_feed(generation)
            feed.listeners.add(wake)
            # A writer forgets a process that doesn't hear its publications: listen first, then say so.
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._subscribed.wait(), RETRY_S)
                await self._register([generation])
                await self._repair(feed)
            finally:
                # Whatever went wrong, the others who wait get what there is; mending goes on.
                feed.loaded.set()
        else:
            feed.listeners.add(wake)
            await feed.loaded.wait()
        return feed

    def unwatch(self, generation: str, wake: Callable[[], None]) -> None:
        """Listen no longer. The last listener takes the feed with it."""
        feed = self._feeds.get(generation)
        if feed is None:
            return
        feed.listeners.discard(wake)
        if not feed.listeners:
            del self._feeds[generation]
            # The watchers of one that has ended go by themselves.
            if not feed.final:
                self._spawn(self._unregister(generation), "relay-unregister")

    async def close(self) -> None:
        """Stop listening, at the end of a process."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._redis.aclose()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)

    async def _register(self, generations: list[str]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for generation in generations:
            pipeline.sadd(watchers_key(generation), self._web)
            pipeline.expire(watchers_key(generation), UNFINISHED_TTL_S)
            pipeline.publish(WATCH_CHANNEL, orjson.dumps([generation, self._web]))
        try:
            await pipeline.execute()
        except (RedisError, OSError) as error:
            log.warning("relay can't register", error=str(error))

    async def _unregister(self, generation: str) -> None:
        try:
            await self._redis.srem(watchers_key(generation), self._web)
        except (RedisError, OSError) as error:
            log.warning("relay can't unregister", error=str(error))

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(web_channel(self._web))
                    async for message in pubsub.listen():
                        if message["type"] == "message":
                            self._take(orjson.loads(message["data"]))
                        elif message["type"] == "subscribe":
                            await self._resume()
            except (RedisError, OSError) as error:
                self._subscribed.clear()
                log.warning("relay has lost its subscription", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _resume(self) -> None:
        """After subscribing, for the first time or again: what was said meanwhile has to be read."""
        feeds = list(self._feeds.values())
        if feeds:
            await self._register([one.generation for one in feeds])
            for feed in feeds:
                self._repair_soon(feed)
        self._subscribed.set()

    def _take(self, deltas: list[list[Any]]) -> None:
        for row in deltas:
            delta = Delta(*row)
            feed = self._feeds.get(delta.generation)
            if feed is None or feed.final:
                continue
            if feed.take(delta):
                feed.announce()
            else:
                self._repair_soon(feed)

    async def _mend(self) -> None:
        """Look after feeds that have long been silent: that is also what a lost publication sounds like."""
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            silent = [
                one for one in tuple(self._feeds.values()) if not one.final and now - one.heard_at > 2.0
            ]
            if silent:
                await self._register([one.generation for one in silent])
            for feed in silent:
                await self._repair(feed)

    def _repair_soon(self, feed: F) -> None:
        if not feed.repairing.locked():
            self._spawn(self._repair(feed), "relay-repair")

    async def _repair(self, feed: F) -> None:
        """Bring the feed up to what Postgres and the stream know."""
        async with feed.repairing:
            entries: list[tuple[int, str]] = []
            try:
                entries = await read_stream(self._redis, feed.generation, after=len(feed.text))
            except (RedisError, OSError) as error:
                log.warning("relay can't read a stream", error=str(error))
            text = assemble(feed.text, entries)
            try:
                checkpoint = await self._checkpoints(feed.generation)
            except (DatabaseError, InterfaceError) as error:
                log.warning("relay can't read a checkpoint", error=str(error))
                return
            if checkpoint is None:
                feed.final = True
            else:
                text = assemble(max(text, checkpoint.text, key=len), entries)
                if checkpoint.final:
                    text, feed.status, feed.progress = checkpoint.text, checkpoint.status, ""
                    feed.final = True
                elif feed.status == MessageStatus.QUEUED:
                    feed.status = checkpoint.status
            # Deltas may have come while this was reading.
            if feed.final or len(text) > len(feed.text):
                feed.text = text
                feed.announce()
            else:
                feed.heard_at = time.monotonic()


def _log_failure(task: asyncio.Task[None]) -> None:
    """A task of the hub that fails must not do so unheard."""
    if not task.cancelled() and (error := task.exception()):
        log.error("a task of the relay failed", task=task.get_name(), exc_info=error)
