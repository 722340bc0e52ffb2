"""What a program asks a model through REST is asked within the rights and limits of its key."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.conf import settings
from django.test import Client
from redis.asyncio import Redis

from accounts import key_actions, version
from accounts.key_rights import KeyRights
from accounts.models import ApiKey, Membership, Team, User
from chat.models import Conversation, Generation, Message
from chat.states import MessageStatus
from gateway.models import Limit, UsageRecord
from gateway.usage.drain import drain
from tests.chat.running import Running
from tests.fake_engine import FakeEngine
from tests.serving import gate_left_in_order, serve

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async


@asynccontextmanager
async def generating() -> AsyncIterator[None]:
    """A generator at work, with a model that answers."""
    async with FakeEngine() as engine, Redis.from_url(settings.REDIS_URL) as redis, gate_left_in_order():
        await in_db(serve)(engine.base_url, engine.api_key)
        running = Running(redis)
        yield
        await running.stop()


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def key_of(user: User, **rights: Any) -> tuple[ApiKey, str]:
    said = {"scopes": tuple(ApiKey.Scope.values)} | rights
    return key_actions.create_api_key(user=user, name="k", by=user, rights=KeyRights(**said))


def ask(key: str, path: str = "conversations/", **body: object) -> Any:
    program = Client(headers={"authorization": f"Bearer {key}"})
    said = json.dumps({"model": "fake", "text": "Hello"} | body)
    return program.post(f"/api/v1/{path}", said, content_type="application/json")


async def ended(generation: str) -> Message:
    async with asyncio.timeout(60):
        while not (found := await Message.objects.aget(generation=generation)).is_final:
            await asyncio.sleep(0.02)
    return found


async def test_an_answer_counts_against_the_key_that_asked_for_it(ada: User) -> None:
    row, key = await in_db(key_of)(ada)
    async with generating():
        await Limit.objects.acreate(api_key=row, requests_per_minute=1)
        await in_db(version.renew)()

        begun = (await in_db(ask)(key)).json()
        assert (await ended(begun["generation"])).status == MessageStatus.DONE
        second = (await in_db(ask)(key, f"conversations/{begun['id']}/messages/")).json()

        refused = await ended(second["id"])
        assert refused.status == MessageStatus.FAILED
        assert "1 request a minute is allowed for this API key" in refused.error
    await in_db(drain)()
    record = await UsageRecord.objects.aget(api_key=row.pk, finish="stop")
    assert record.door == "chat"
    await row.arefresh_from_db()
    assert row.last_used_at is not None


async def test_an_answer_is_not_written_for_a_key_that_was_revoked_meanwhile(ada: User) -> None:
    await in_db(serve)("http://127.0.0.1:9", "key")
    row, key = await in_db(key_of)(ada)
    begun = (await in_db(ask)(key)).json()
    await in_db(key_actions.revoke_api_key)(row, by=ada)

    async with generating():
        assert "revoked" in (await ended(begun["generation"])).error


def test_a_key_asks_only_models_that_it_opens(ada: User) -> None:
    fake, other = serve("http://127.0.0.1:9", "key"), serve("http://127.0.0.1:10", "key", slug="other")
    _, confined = key_of(ada, model_slugs=("other",))
    lab, office = Team.objects.create(name="Lab"), Team.objects.create(name="Office")
    for team in (lab, office):
        Membership.objects.create(team=team, user=ada, role=Membership.Role.ADMIN)
    _, labs = key_of(ada, team=lab)
    fake.teams.add(office)

    for key in (confined, labs):
        refused = ask(key)
        assert refused.status_code == HTTPStatus.BAD_REQUEST
        assert refused.json()["param"] == "model"
        assert ask(key, model="other").status_code == HTTPStatus.CREATED
    assert not Generation.objects.exclude(served=other).exists()

    whole = Conversation.objects.first()
    generation = Generation.objects.filter(message__conversation=whole).get()
    Generation.objects.filter(pk=generation.pk).update(ended_at=whole.created_at, served=fake)
    Message.objects.filter(pk=generation.message_id).update(status="done", model_slug="fake")
    Conversation.objects.filter(pk=whole.pk).update(served=fake)
    assert ask(labs, f"generations/{generation.pk}/retry/").status_code == HTTPStatus.CONFLICT


def test_a_key_that_is_not_made_for_models_asks_none(ada: User) -> None:
    serve("http://127.0.0.1:9", "key")
    _, key = key_of(ada, scopes=("read", "write"))

    refused = ask(key)

    assert refused.status_code == HTTPStatus.FORBIDDEN
    assert "inference" in refused.json()["detail"]
    assert not Conversation.objects.exists()
