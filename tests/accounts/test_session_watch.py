"""A socket lives no longer than the session in which it was opened."""

import asyncio
import time
from typing import Any

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.test import Client

from accounts import session_watch
from accounts.models import User
from accounts.session_watch import SIGNED_OUT
from chat.live import close_hub
from chat.models import Conversation
from llamaproj.asgi import application

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async
PASSWORD = "a long password 1"


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", password=PASSWORD)


@pytest.fixture
def paths(ada: User) -> list[str]:
    begun = Conversation.objects.create(owner=ada, title="On llamas")
    return [f"/ws/chat/{begun.pk}/", "/ws/models/", "/ws/monitoring/"]


def signed_in() -> Client:
    client = Client()
    client.post("/accounts/login/", {"login": "ada", "password": PASSWORD})
    return client


async def opened(client: Client, path: str) -> WebsocketCommunicator:
    headers = [
        (b"host", b"localhost"),
        (b"cookie", f"sessionid={client.cookies['sessionid'].value}".encode()),
    ]
    socket = WebsocketCommunicator(application, path, headers)
    assert (await socket.connect())[0], path
    return socket


async def closed(socket: WebsocketCommunicator) -> Any:
    """With which code the socket is closed; what comes before is passed over."""
    while (said := await socket.receive_output())["type"] != "websocket.close":
        pass
    return said["code"]


async def test_who_signs_the_others_out_closes_their_sockets(ada: User, paths: list[str]) -> None:
    here, phone = await in_db(signed_in)(), await in_db(signed_in)()
    mine = [await opened(here, path) for path in paths]
    others = [await opened(phone, path) for path in paths]

    await in_db(here.post)("/settings/sessions/others/")
    began = time.monotonic()
    assert [await closed(one) for one in others] == [SIGNED_OUT] * 3
    assert time.monotonic() - began < 2
    await asyncio.sleep(session_watch._EVERY_S)
    for one in mine:
        while not one.output_queue.empty():
            assert (await one.receive_output())["type"] == "websocket.send"
    for one in mine + others:
        await one.disconnect()
    await close_hub()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "session-watch"]


@pytest.mark.parametrize("end", ["password", "account", "sign out"])
async def test_a_socket_ends_with_its_session(ada: User, paths: list[str], end: str) -> None:
    client = await in_db(signed_in)()
    socket = await opened(client, "/ws/monitoring/")

    if end == "sign out":
        await in_db(client.post)("/accounts/logout/")
    else:
        ada.is_active = end != "account"
        if end == "password":
            ada.set_password("another long password 1")
        await ada.asave()

    assert await closed(socket) == SIGNED_OUT
    await socket.disconnect()
