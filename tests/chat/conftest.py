"""What nearly every test of answers begins with: a conversation with a llama-server that does as it is told."""

from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async
from django.conf import settings
from redis.asyncio import Redis

from accounts.models import User
from chat import actions
from chat.live import close_hub
from chat.models import Conversation
from tests.chat.running import Running
from tests.fake_engine import FakeEngine
from tests.serving import gate_left_in_order, serve


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as engine, gate_left_in_order():
        yield engine
        await close_hub()


@pytest.fixture
async def conversation(engine: FakeEngine) -> Conversation:
    """Ada's, whose first answer nobody has begun."""

    def make() -> Conversation:
        served = serve(engine.base_url, engine.api_key)
        return actions.begin(owner=User.objects.create_user("ada"), text="Tell me", served=served)

    return await database_sync_to_async(make)()


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    async with Redis.from_url(settings.REDIS_URL) as client:
        yield client


@pytest.fixture
async def running(redis: Redis) -> AsyncIterator[Running]:
    """A generator at work."""
    running = Running(redis)
    yield running
    await running.stop()
