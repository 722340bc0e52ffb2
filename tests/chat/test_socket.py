"""The conversation's socket: who gets in, what it says, what it refuses."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from redis.asyncio import Redis

from accounts.models import User
from chat.generator import Generator
from chat.models import Conversation
from chat.states import MessageStatus
from tests.fake_engine import Script

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async


@pytest.fixture
async def generator() -> AsyncIterator[Generator]:
    redis = Redis.from_url(settings.REDIS_URL)
    stopping = asyncio.Event()
    generator = Generator(redis)
    task = asyncio.create_task(generator.run(stopping))
    yield generator
    stopping.set()
    await task
    await redis.aclose()


class Socket:
    """A page's end of the socket."""

    def __init__(self, pk: object, user: object) -> None:
        # Imported late: the application loads the apps' consumers.
        from channels.routing import URLRouter
        from django.urls import path

        from chat.consumers import ConversationConsumer

        routes = URLRouter([path("ws/chat/<uuid:pk>/", ConversationConsumer.as_asgi())])
        self.raw = WebsocketCommunicator(routes, f"/ws/chat/{pk}/")
        self.raw.scope["user"] = user

    async def open(self) -> "Socket":
        accepted, _ = await self.raw.connect()
        assert accepted
        return self

    async def send(self, kind: str, request_id: str | None = None, **data: object) -> None:
        await self.raw.send_to(text_data=json.dumps({"type": kind, "data": data, "requestId": request_id}))

    async def frame(self) -> dict[str, Any]:
        return json.loads(await self.raw.receive_from())

    async def ended(self) -> list[dict[str, Any]]:
        """Frames up to the end of an answer, seen growing or whole."""
        frames = [await self.frame()]
        while 'data-status="done"' not in frames[-1]["data"].get("html", "") or "assistant" not in str(
            frames[-1]
        ):
            if frames[-1]["data"].get("status") == "done":
                break
            frames.append(await self.frame())
        return frames

    async def until(self, kind: str, **wanted: object) -> list[dict[str, Any]]:
        frames = []
        async with asyncio.timeout(60):
            while True:
                frame = await self.frame()
                frames.append(frame)
                if frame["type"] == kind and wanted.items() <= frame["data"].items():
                    return frames


@pytest.fixture
async def socket(conversation: Conversation) -> AsyncIterator[Socket]:
    socket = await Socket(conversation.pk, await in_db(lambda: conversation.owner)()).open()
    yield socket
    # A time-out in the test has ended the consumer already; its end must not keep pytest from tidying up.
    with contextlib.suppress(asyncio.CancelledError):
        await socket.raw.disconnect()


async def test_strangers_and_nobody_are_refused(conversation):
    stranger = await in_db(User.objects.create_user)("eve")
    staff = await in_db(User.objects.create_superuser)("root")
    for user in (AnonymousUser(), stranger, staff):
        accepted, _ = await Socket(conversation.pk, user).raw.connect()
        assert not accepted
    accepted, _ = await Socket(uuid4(), await in_db(lambda: conversation.owner)()).raw.connect()
    assert not accepted


async def test_a_page_sees_the_whole_answer_once(engine, conversation, socket, generator):
    engine.scripts = [Script(text="First block.\n\nSecond block.\n\nThird.")]
    await socket.send("resume", last=None, open={})

    frames = await socket.until("answer", status="done")

    answers = [one["data"] for one in frames if one["type"] == "answer"]
    blocks = [block for one in answers for block in one["append"]]
    assert blocks == ["<p>First block.</p>\n", "<p>Second block.</p>\n", "<p>Third.</p>\n"]
    counted = 0
    for one in answers:
        assert one["blocks"] == counted
        counted += len(one["append"])
    assert "meta" in answers[-1]


async def test_a_page_that_comes_back_continues_where_it_was(engine, conversation, generator):
    engine.scripts = [Script(text="One.\n\nTwo.\n\n" + "slow " * 200, interval_ms=5)]
    owner = await in_db(lambda: conversation.owner)()
    answer = str((await conversation.messages.aget(number=2)).pk)
    first = await Socket(conversation.pk, owner).open()
    await first.send("resume", last=None, open={})
    shown = 0
    while shown < 2:
        frame = await first.frame()
        shown += len(frame["data"].get("append", []))
    await first.raw.disconnect()

    second = await Socket(conversation.pk, owner).open()
    await second.send("resume", last=answer, open={answer: shown})
    frames = await second.until("answer", status="done")

    assert [one["type"] for one in frames] == ["answer"] * len(frames)
    assert frames[0]["data"]["blocks"] == shown
    assert sum(len(one["data"]["append"]) for one in frames) == 1
    await second.raw.disconnect()


async def test_a_message_sent_here_appears_on_every_page(engine, conversation, generator):
    owner = await in_db(lambda: conversation.owner)()
    pages = [await Socket(conversation.pk, owner).open() for _ in range(2)]
    for page in pages:
        await page.send("resume", last=None, open={})
        await page.ended()

    await pages[0].send("send", text="And then?", model="fake")

    for page in pages:
        frames = await page.ended()
        assert "And then?" in "".join(one["data"].get("html", "") for one in frames)
        await page.raw.disconnect()


async def test_stop_and_retry(engine, conversation, socket, generator):
    engine.scripts = [Script(tokens=5000, interval_ms=5), Script(text="Again.")]
    answer = str((await conversation.messages.aget(number=2)).pk)
    await socket.send("resume", last=None, open={})
    await socket.until("answer", status="writing")

    await socket.send("stop", message=answer)
    await socket.until("answer", status="stopped")
    await socket.send("retry", message=answer)
    await socket.ended()

    message = await conversation.messages.aget(number=2)
    assert (message.status, message.text) == (MessageStatus.DONE, "Again.")


@pytest.mark.parametrize(
    "frame",
    [
        " ",
        "not json",
        "[]",
        "{}",
        '{"type": 3}',
        '{"type": "dance"}',
        '{"type": "send", "data": []}',
        '{"type": "send", "data": {"text": 3}}',
        '{"type": "send", "data": {"text": "Hello", "model": "a\\u0000b"}}',
        '{"type": "stop", "data": {"message": "x"}}',
        '{"type": "resume", "data": {"last": 7, "open": {}}}',
        '{"type": "resume"}',
        "[" * 10000,
        '{"type": "resume", "data": {"open": {"zz": 1}}}',
    ],
)
async def test_a_bad_frame_is_answered_in_words_and_the_socket_stays(conversation, socket, frame):
    await socket.raw.send_to(text_data=frame)

    error = await socket.frame()
    assert error["type"] == "error"
    assert error["data"]["message"]
    await socket.send("send", "r1", text="", model="fake")
    error = await socket.frame()
    assert (error["requestId"], error["data"]["code"]) == ("r1", "empty_message")


async def test_a_second_message_before_the_answer_is_refused_and_changes_nothing(conversation, socket):
    await socket.send("send", "r1", text="Hurry!", model="fake")

    error = (await socket.until("error"))[-1]

    assert error["data"]["code"] == "answer_unfinished"
    assert await conversation.messages.acount() == 2


async def test_a_model_one_may_not_use_looks_unknown(conversation, socket):
    await socket.send("send", "r1", text="Hello", model="secret")

    assert (await socket.until("error"))[-1]["data"]["code"] == "not_found"


async def test_whoever_was_shut_out_meanwhile_is_told_so(conversation, socket):
    await User.objects.aupdate(is_active=False)

    await socket.send("stop", "r1", message=str((await conversation.messages.aget(number=2)).pk))

    assert (await socket.until("error"))[-1]["data"]["code"] == "not_authenticated"
