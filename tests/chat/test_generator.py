"""The generator against a server that can be told to break: what was written stays, whatever dies."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest
from channels.db import database_sync_to_async
from django.utils import timezone

from chat import actions, leases, rendering
from chat.generator import Generator
from chat.models import Generation
from chat.relay_writer import LogWriter
from chat.states import MessageStatus
from gateway.models import UsageRecord
from gateway.usage.drain import drain
from models_admin.models import ServedModel
from tests.chat.running import Running, answer_of, ended
from tests.fake_engine import FakeEngine, Script
from tests.serving import add_replica

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async


def text_of(tokens: int) -> str:
    return "".join(Script(tokens=tokens).pieces())


async def test_an_answer_is_written_kept_and_recorded(engine, conversation, running):
    engine.scripts = [Script(tokens=40)]

    answer = await ended(conversation)

    assert (answer.status, answer.text) == (MessageStatus.DONE, text_of(40))
    assert (answer.completion_tokens, answer.model_slug) == (40, "fake")
    assert answer.timings["total_ms"] > 0
    await in_db(drain)()
    record = await UsageRecord.objects.alatest("at")
    assert (record.finish, record.completion_tokens, record.door) == ("stop", 40, "chat")


async def test_a_replica_that_dies_in_mid_answer_is_continued_from(engine, conversation, running):
    engine.scripts = [Script(tokens=60, cut_after=20), Script(tokens=60, cut_after=7), Script(tokens=60)]

    answer = await ended(conversation)

    assert (answer.status, answer.text) == (MessageStatus.DONE, text_of(60))
    assert engine.requests[1]["messages"][-1] == {"role": "assistant", "content": text_of(20)}


async def test_another_replica_takes_over(engine, conversation, running):
    async with FakeEngine() as second:
        served = await in_db(lambda: conversation.served)()
        await in_db(add_replica)(served, second.base_url, second.api_key)
        engine.scripts = [Script(tokens=30, cut_after=10)]
        second.scripts = [Script(tokens=30)]

        answer = await ended(conversation)

    assert answer.status == MessageStatus.DONE
    assert answer.text == text_of(30) or engine.requests == []


async def test_a_server_that_always_breaks_ends_in_words_and_keeps_the_text(engine, conversation, running):
    engine.scripts = [Script(tokens=60, cut_after=20), *[Script(drop=True)] * 60]

    answer = await ended(conversation)

    assert (answer.status, answer.text) == (MessageStatus.FAILED, text_of(20))
    assert "can't be reached" in answer.error


async def test_a_text_too_long_is_explained_and_the_question_kept(engine, conversation, running):
    engine.context_tokens = 0

    answer = await ended(conversation)

    assert answer.status == MessageStatus.FAILED
    assert "tokens long" in answer.error or "longer than" in answer.error
    question = await in_db(lambda: conversation.messages.get(number=1))()
    assert question.text == "Tell me"


async def test_stop_frees_the_slot_and_keeps_the_text(engine, conversation, running, redis):
    engine.scripts = [Script(tokens=10_000, interval_ms=5)]
    while await redis.xlen(f"gen:{(await Generation.objects.aget()).pk}") < 3:
        await asyncio.sleep(0.02)

    await in_db(actions.stop)(await answer_of(conversation))

    async with asyncio.timeout(1):
        while engine.busy_slots:
            await asyncio.sleep(0.01)
    answer = await ended(conversation)
    assert answer.status == MessageStatus.STOPPED
    assert answer.text
    assert text_of(10_000).startswith(answer.text)


async def test_of_a_stopped_answer_is_said_what_is_known(engine, conversation, running):
    engine.scripts = [Script(tokens=10_000, interval_ms=5)]
    while not running.generator._open or not (await answer_of(conversation)).text:
        await asyncio.sleep(0.02)

    await in_db(actions.stop)(await answer_of(conversation))

    answer = await ended(conversation)
    assert answer.status == MessageStatus.STOPPED
    assert answer.completion_tokens == len(answer.text.split())
    assert answer.prompt_tokens
    assert answer.timings["decode_ms"] > 0
    assert answer.timings["tokens_per_second"] > 0
    assert f"{answer.completion_tokens:,} token" in rendering.meta_html(answer)


async def test_an_answer_nobody_has_begun_is_stopped_at_once(engine, conversation):
    await in_db(actions.stop)(await answer_of(conversation))

    assert (await answer_of(conversation)).status == MessageStatus.STOPPED


async def test_an_orderly_end_hands_the_answer_to_the_next_generator(engine, conversation, redis):
    # Five seconds: a slow machine must not see its end before it is looked at.
    engine.scripts = [Script(tokens=100, interval_ms=50), Script(tokens=100)]
    first = Running(redis)
    async with asyncio.timeout(60):
        while await redis.xlen(f"gen:{(await Generation.objects.aget()).pk}") < 3:
            await asyncio.sleep(0.02)
    await first.stop()
    partial = await answer_of(conversation)
    assert partial.text
    assert not partial.is_final

    second = Running(redis)
    answer = await ended(conversation)
    await second.stop()

    assert (answer.status, answer.text) == (MessageStatus.DONE, text_of(100))


async def test_it_ends_though_a_cancellation_got_lost(conversation, redis, monkeypatch):
    lost = asyncio.Event()

    async def run(writer):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(LogWriter, "run", run)
    running = Running(redis)
    await asyncio.sleep(0.05)

    async with asyncio.timeout(20):
        await running.stop()

    assert lost.is_set()


async def test_a_killed_generator_is_continued_by_another_with_nothing_lost(
    engine, conversation, redis, monkeypatch
):
    monkeypatch.setattr(leases, "LEASE_S", 1.0)
    # Four seconds, of which only the beginning is waited for.
    engine.scripts = [Script(tokens=200, interval_ms=20), Script(tokens=200)]
    first = Running(redis)
    while not (stream := await redis.xlen(f"gen:{(await Generation.objects.aget()).pk}")) or stream < 5:
        await asyncio.sleep(0.02)
    await first.kill()

    second = Running(redis)
    answer = await ended(conversation)
    await second.stop()

    assert (answer.status, answer.text) == (MessageStatus.DONE, text_of(200))
    assert (await Generation.objects.aget()).attempts == 2


async def test_only_one_of_two_generators_gets_an_answer(conversation):
    claims = await asyncio.gather(
        *(in_db(leases.claim)(owner, 10) for owner in (Generator(None).owner, Generator(None).owner))
    )

    assert sorted(len(claim) for claim in claims) == [0, 1]


async def test_a_generator_whose_lease_was_taken_over_writes_nothing_more(conversation):
    old, new = Generator(None).owner, Generator(None).owner
    (generation,) = await in_db(leases.claim)(old, 1)
    await Generation.objects.aupdate(lease_owner=new)

    await in_db(leases.checkpoint)(old, {generation: ("stale", MessageStatus.WRITING)})
    unknown = {"error": "", "model_slug": "", "prompt_tokens": None, "completion_tokens": None, "timings": {}}
    finished = await in_db(leases.finish)(old, generation, MessageStatus.DONE, text="stale", **unknown)

    assert finished is False
    assert (await answer_of(conversation)).text == ""


async def test_an_answer_ends_where_the_model_may_write_no_longer(engine, conversation, redis):
    await ServedModel.objects.aupdate(answer_tokens=30)
    engine.scripts = [Script(tokens=100, cut_after=10), Script(tokens=100)]
    running = Running(redis)

    answer = await ended(conversation)
    await running.stop()

    assert (answer.status, answer.text) == (MessageStatus.DONE, text_of(30))
    assert "longest answer" in answer.error


async def test_garbage_from_a_replica_is_a_lost_replica(engine, conversation, running):
    engine.scripts = [Script(tokens=40, garbage_after=12), Script(tokens=40)]

    answer = await ended(conversation)

    assert (answer.status, answer.text) == (MessageStatus.DONE, text_of(40))


async def test_a_generator_does_not_claim_what_it_still_writes(conversation):
    owner = Generator(None).owner
    (generation,) = await in_db(leases.claim)(owner, 5)
    await Generation.objects.aupdate(lease_until=timezone.now() - timedelta(seconds=1))

    assert await in_db(leases.claim)(owner, 5, besides=[generation]) == []
    assert await in_db(leases.claim)(owner, 5) == [generation]


async def test_a_generator_whose_clock_is_wrong_takes_nothing_that_another_holds(conversation, monkeypatch):
    [held] = await in_db(leases.claim)(uuid4(), 10)
    now = timezone.now()

    monkeypatch.setattr(timezone, "now", lambda: now + timedelta(hours=1))

    assert await in_db(leases.claim)(uuid4(), 10) == []
    answer = await conversation.messages.select_related("generation").aget(generation=held)
    await in_db(actions.stop)(answer)
    assert not (await Generation.objects.aget()).ended_at
