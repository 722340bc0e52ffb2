"""Clients that read no more: whose key is revoked meanwhile, and who simply hang."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from channels.db import database_sync_to_async
from uvicorn.server import ServerState

from accounts import key_actions
from accounts.models import ApiKey, User
from gateway import admission
from gateway.admission.gate import gate
from gateway.models import Limit
from gateway.openai import exchange
from gateway.openai.application import application
from tests.fake_engine import FakeEngine, Script
from tests.gateway.program import CHAT, Program
from tests.serving import gate_left_in_order, serve

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async
ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
BODY = b'{"model": "fake", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as engine, gate_left_in_order():
        # More than fits into the sockets in between.
        engine.scripts = [Script(tokens=60_000)]
        await in_db(serve)(engine.base_url, engine.api_key)
        yield engine


@pytest.fixture
async def key(engine: FakeEngine) -> tuple[ApiKey, str]:
    def make() -> tuple[ApiKey, str]:
        user = User.objects.create_user("ada")
        Limit.objects.create(user=user, concurrent_requests=1)
        return key_actions.create_api_key(user=user, name="leaked", by=None)

    return await in_db(make)()


async def until_held_back(engine: FakeEngine) -> None:
    """Until nothing more is written for a client that doesn't read."""
    written = -1
    while not engine.predicted_tokens or engine.predicted_tokens != written:
        written = engine.predicted_tokens
        await asyncio.sleep(0.3)


async def places(key: ApiKey) -> int | None:
    [use] = await in_db(admission.use_of)([("user", key.user_id)])
    return use.concurrent_requests


async def test_who_reads_no_more_gives_the_place_back_all_the_same(engine, key):
    row, shown = key
    connection = Program(shown).stream(ASK)
    await connection.until(b"w5 ")
    connection.reads.clear()
    await asyncio.sleep(0.1)
    assert await places(row) == 1

    await in_db(key_actions.revoke_api_key)(row, by=None)

    async with asyncio.timeout(3):
        while gate().tickets or engine.busy_slots or await places(row):
            await asyncio.sleep(0.05)
    assert not connection.task.done()
    # Whoever reads on is told why it ends.
    connection.reads.set()
    response = await connection.response(2)
    assert b"authentication_error" in response.content


@asynccontextmanager
async def unread(engine: FakeEngine, shown: str) -> AsyncIterator[ServerState]:
    """A real server, of which a client has asked for a stream that it doesn't read."""
    config = uvicorn.Config(application, http="httptools", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, server.sockets[0].getsockname())
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {shown}\r\n"
        head += f"content-length: {len(BODY)}\r\n\r\n"
        await loop.sock_sendall(client, head.encode() + BODY)
        assert await loop.sock_recv(client, 15) == b"HTTP/1.1 200 OK"
        assert state.tasks
        await until_held_back(engine)
        yield state
    server.close()
    await server.wait_closed()


async def is_cut(state: ServerState, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while state.tasks or state.connections:
            await asyncio.sleep(0.05)
    assert not gate().tickets


async def test_the_connection_of_who_reads_no_more_is_cut_after_a_moment(engine, key, monkeypatch):
    monkeypatch.setattr(exchange, "_GRACE_S", 0.3)
    row, shown = key
    async with unread(engine, shown) as state:
        await in_db(key_actions.revoke_api_key)(row, by=None)

        await is_cut(state, 4)


async def test_nobody_keeps_a_slot_for_ever_without_reading(engine, key, monkeypatch):
    monkeypatch.setattr(exchange, "_STALLED_S", 1.0)
    async with unread(engine, key[1]) as state:
        await is_cut(state, 8)

    assert not engine.busy_slots
