"""Text on its way from generators to web processes, through a real Valkey."""

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import orjson
import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from chat import relay
from chat.relay import Delta, assemble
from chat.relay_hub import Checkpoint, Feed, Hub
from chat.relay_writer import TICK_S, LogWriter
from chat.states import MessageStatus


@given(st.text(min_size=1), st.data())
def test_whatever_was_kept_of_a_text_is_put_together_without_repeat_or_gap(text, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text)))) | {len(text)})
    entries = [(end, text[start:end]) for start, end in zip([0, *cuts], cuts, strict=False)]
    checkpoint = text[: data.draw(st.integers(0, len(text)))]
    kept = entries[data.draw(st.integers(0, len(entries))) :]

    known = assemble(checkpoint, kept)

    assert text.startswith(known)
    assert len(known) >= len(checkpoint)
    if kept and kept[0][0] - len(kept[0][1]) <= len(checkpoint):
        assert known == text


@pytest.mark.parametrize(
    ("offset", "text", "taken", "result"),
    [(3, "def", True, "abcdef"), (1, "bcde", True, "abcde"), (0, "ab", True, "abc"), (4, "x", False, "abc")],
)
def test_a_delta_is_appended_sliced_or_refused_by_its_offset(offset, text, taken, result):
    feed = Feed("g")
    feed.text = "abc"

    assert feed.take(Delta("g", offset, text, "writing", "", False)) is taken
    assert feed.text == result


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    client = Redis.from_url(settings.REDIS_URL)
    await client.flushdb()
    yield client
    await client.aclose()


@pytest.fixture
async def writer(redis: Redis) -> AsyncIterator[LogWriter]:
    writer = LogWriter(redis)
    task = asyncio.create_task(writer.run(), name="writer")
    yield writer
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Reader:
    """A web process's hub with one listener, and a checkpoint the test sets."""

    def __init__(self, redis: Redis) -> None:
        self.checkpoint: Checkpoint | None = Checkpoint("", MessageStatus.QUEUED, final=False)
        self.hub = Hub(redis, uuid4().hex, self._read, Feed)
        self.news = asyncio.Event()
        self.seen: list[str] = []
        self.feed: Feed

    async def _read(self, generation: str) -> Checkpoint | None:
        return self.checkpoint

    def _wake(self) -> None:
        self.seen.append(self.feed.text)
        self.news.set()

    async def watch(self, generation: str) -> "Reader":
        self.feed = Feed(generation)
        self.feed = await self.hub.watch(generation, self._wake)
        return self

    async def until(self, condition: Callable[[Feed], bool]) -> Feed:
        async with asyncio.timeout(30):
            while not condition(self.feed):
                self.news.clear()
                await self.news.wait()
        return self.feed


@pytest.fixture
async def reader(redis: Redis) -> AsyncIterator[Reader]:
    reader = Reader(redis)
    yield reader
    await reader.hub.close()


async def test_a_reader_gets_every_character_once_and_the_end(redis, writer, reader):
    await reader.watch("g1")
    out = await writer.open("g1", offset=0)
    for n in range(200):
        writer.write(out, f"{n} ")
        if n % 20 == 0:
            await asyncio.sleep(0.01)
    writer.close(out, MessageStatus.DONE)

    feed = await reader.until(lambda one: one.final)

    assert feed.text == "".join(f"{n} " for n in range(200))
    assert feed.status == MessageStatus.DONE
    assert all(feed.text.startswith(seen) for seen in reader.seen)


async def test_a_late_reader_continues_from_the_stream(redis, writer, reader):
    out = await writer.open("g2", offset=0)
    writer.write(out, "before ")
    while out.sent == 0:
        await asyncio.sleep(0.01)
    await reader.watch("g2")
    assert reader.feed.text == "before "

    writer.write(out, "after")

    assert (await reader.until(lambda one: len(one.text) > 7)).text == "before after"


async def test_a_late_reader_hears_what_is_waited_for(redis, writer, reader):
    out = await writer.open("g9", offset=0)
    writer.tell(out, MessageStatus.QUEUED, "waiting, 2nd in line")
    while out.changed:
        await asyncio.sleep(0.01)

    await reader.watch("g9")

    assert (await reader.until(lambda one: one.progress != "")).progress == "waiting, 2nd in line"


async def test_a_publication_that_got_lost_is_made_good_from_the_stream(redis, writer, reader):
    await reader.watch("g3")
    # Entries that reached the stream but whose publication didn't reach this process:
    await redis.xadd(relay.stream_key("g3"), {"t": "lost "}, id="5-0")
    await redis.publish(
        relay.web_channel(reader.hub._web), orjson.dumps([["g3", 5, "found", "writing", "", False]])
    )
    await redis.xadd(relay.stream_key("g3"), {"t": "found"}, id="10-0")

    assert (await reader.until(lambda one: len(one.text) >= 10)).text == "lost found"


async def test_an_emptied_valkey_falls_back_to_the_checkpoint(redis, writer, reader):
    out = await writer.open("g4", offset=0)
    writer.write(out, "kept in postgres ")
    while out.pending:
        await asyncio.sleep(0.01)
    await redis.flushdb()
    reader.checkpoint = Checkpoint("kept in postgres ", MessageStatus.WRITING, final=False)
    await reader.watch("g4")

    writer.write(out, "and on")

    feed = await reader.until(lambda one: one.text.endswith("on"))
    assert feed.text == "kept in postgres and on"


async def test_a_writer_taken_over_from_repeats_nothing(redis, writer, reader):
    await reader.watch("g5")
    first = await writer.open("g5", offset=0)
    writer.write(first, "one two")
    await reader.until(lambda one: one.text == "one two")
    writer.abandon(first)

    text = assemble("", await relay.read_stream(redis, "g5"))
    second = await writer.open("g5", offset=len(text))
    writer.write(second, " three")
    writer.close(second, MessageStatus.DONE)

    assert (await reader.until(lambda one: one.final)).text == "one two three"


async def test_a_process_past_its_lease_sends_nothing(redis, writer, reader):
    await reader.watch("g6")
    out = await writer.open("g6", offset=0)
    out.valid_until = 0.0
    writer.write(out, "stale")
    await asyncio.sleep(3 * TICK_S)

    assert await redis.exists(relay.stream_key("g6")) == 0


async def test_the_end_is_found_in_postgres_when_nobody_says_it(redis, reader):
    await reader.watch("g7")
    reader.checkpoint = Checkpoint("the whole answer", MessageStatus.DONE, final=True)

    feed = await reader.until(lambda one: one.final)

    assert (feed.text, feed.status) == ("the whole answer", MessageStatus.DONE)


async def test_a_web_process_that_died_is_forgotten(redis, writer):
    await redis.sadd(relay.watchers_key("g8"), "nobody")
    out = await writer.open("g8", offset=0)
    assert out.watchers == {"nobody"}

    writer.write(out, "hello")
    while out.watchers:
        await asyncio.sleep(0.01)
