"""What nearly every test of the door begins with: a llama-server that does as it is told, and a program with a key."""

from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async

from accounts import key_actions
from accounts.models import User
from models_admin.models import ServedModel
from tests.fake_engine import FakeEngine
from tests.gateway.program import Program
from tests.serving import gate_left_in_order, serve

in_db = database_sync_to_async


@pytest.fixture
async def fake() -> AsyncIterator[FakeEngine]:
    """The llama-server; `engine` is a real one."""
    async with FakeEngine() as fake, gate_left_in_order():
        yield fake


@pytest.fixture
async def served(fake: FakeEngine) -> ServedModel:
    """A model with that one replica."""
    return await in_db(serve)(fake.base_url, fake.api_key)


@pytest.fixture
async def user() -> User:
    return await in_db(User.objects.create_user)("ada")


@pytest.fixture
async def program(user: User) -> Program:
    """Ada's, with a key that opens what every new one does."""
    _, key = await in_db(key_actions.create_api_key)(user=user, name="test", by=None)
    return Program(key)
