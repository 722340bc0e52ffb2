"""Answers written by a server that is no llama-server: what was seen stays, and nothing is seen twice."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async

from accounts.models import User
from chat import actions
from chat.models import Conversation
from chat.states import MessageStatus
from models_admin.external import actions as external_actions
from models_admin.external import external
from models_admin.external import tasks as external_tasks
from tests.chat.running import Running, answer_of, ended
from tests.fake_openai import WORDS, FakeOpenAI
from tests.serving import gate_left_in_order

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async
WHOLE = "".join(WORDS)


@pytest.fixture(autouse=True)
def nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_tasks, "check_soon", lambda pk: None)


@pytest.fixture
async def server() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI(models=["llama3"], key="sk-theirs") as server, gate_left_in_order():
        yield server


@pytest.fixture
async def conversation(server: FakeOpenAI) -> Conversation:
    @database_sync_to_async
    def make() -> Conversation:
        row = external_actions.add(by=None, name="box", base_url=server.base_url, api_key=server.key)
        assert external.check(row).healthy
        row.refresh_from_db()
        served = external_actions.serve(row, "llama3", by=None)
        owner = User.objects.create_user("ada", password="a long password")
        return actions.begin(owner=owner, text="Tell me", served=served)

    return await make()


async def test_an_answer_is_written_and_counted(server, conversation, running):
    server.interval_s = 0.02

    answer = await ended(conversation)

    assert (answer.status, answer.text, answer.model_slug) == (MessageStatus.DONE, WHOLE, "llama3")
    assert (answer.prompt_tokens, answer.completion_tokens) == (7, len(WORDS))
    assert 0 < answer.timings["tokens_per_second"] < 100
    assert not {"cache_prompt", "return_progress"} & set(server.requests[0])


async def test_what_nobody_has_seen_is_asked_for_again(server, conversation, redis):
    server.conduct = "500"
    running = Running(redis)
    async with asyncio.timeout(30):
        while not server.requests:
            await asyncio.sleep(0.01)
    server.conduct = ""

    answer = await ended(conversation)
    await running.stop()

    assert (answer.status, answer.text) == (MessageStatus.DONE, WHOLE)


async def test_an_answer_that_breaks_off_keeps_its_text_and_says_so(server, conversation, running):
    server.conduct, server.interval_s = "cut", 0.02

    answer = await ended(conversation)

    assert answer.status == MessageStatus.FAILED
    assert answer.text
    assert WHOLE.startswith(answer.text)
    assert "can't go on" in answer.error
    assert len(server.requests) == 1


async def test_an_answer_whose_generator_died_keeps_its_text_and_says_so(server, conversation, redis):
    server.interval_s = 0.6
    first = Running(redis)
    async with asyncio.timeout(30):
        while not (await answer_of(conversation)).text:
            await asyncio.sleep(0.02)
    await first.kill()
    second = Running(redis)

    answer = await ended(conversation)
    await second.stop()

    assert answer.status == MessageStatus.FAILED
    assert answer.text
    assert WHOLE.startswith(answer.text)
    assert "can't go on" in answer.error
    assert len(server.requests) == 1


async def test_a_server_that_takes_no_more_ends_in_its_words(server, conversation, running):
    server.conduct = "429"

    answer = await ended(conversation)

    assert answer.status == MessageStatus.FAILED
    assert "can't take the request at the moment" in answer.error
    assert len(server.requests) == 1


async def test_the_model_of_a_server_switched_off_is_not_waited_for(server, conversation, redis):
    await in_db(lambda: external_actions.disable(conversation.served.external, by=None))()
    running = Running(redis)

    answer = await ended(conversation)
    await running.stop()

    assert answer.status == MessageStatus.FAILED
    assert "isn't running" in answer.error
    assert server.requests == []
