"""A conversation that its owner shares with a team: read by its members, written by its owner alone."""

from http import HTTPStatus

import pytest
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.test import Client

from accounts.models import Membership, Team, User
from chat import actions
from chat.consumers import ConversationConsumer
from chat.models import Conversation
from llamaproj.errors import InvalidInput

pytestmark = pytest.mark.django_db


def client_of(user):
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def people():
    """A team of ada and ben; eve, and an administrator, are in none. Ada has a conversation."""
    team = Team.objects.create(name="Research")
    made = {
        name: User.objects.create_user(name, is_staff=name == "root")
        for name in ("ada", "ben", "eve", "root")
    }
    for name in ("ada", "ben"):
        Membership.objects.create(team=team, user=made[name])
    conversation = Conversation.objects.create(owner=made["ada"], title="On llamas")
    conversation.messages.create(number=1, role="user", text="What is a llama?")
    return made | {"team": team, "conversation": conversation}


def readers(people):
    seen = {}
    for name in ("ada", "ben", "eve", "root"):
        seen[name] = Conversation.objects.visible_to(people[name]).exists()
    return [name for name, sees in seen.items() if sees]


def test_only_the_team_reads_it_and_only_while_it_is_shared(people):
    assert readers(people) == ["ada"]
    actions.share(people["conversation"], people["team"])
    assert readers(people) == ["ada", "ben"]
    actions.share(people["conversation"], None)
    assert readers(people) == ["ada"]


@pytest.mark.parametrize("leaves", ["ada", "ben"])
def test_it_ends_when_either_leaves_the_team(people, leaves):
    actions.share(people["conversation"], people["team"])
    Membership.objects.filter(user=people[leaves]).delete()

    assert readers(people) == ["ada"]


def test_a_deleted_team_shares_nothing_any_more(people):
    actions.share(people["conversation"], people["team"])
    people["team"].delete()

    assert readers(people) == ["ada"]


def test_nobody_shares_with_a_team_of_others(people):
    other = Team.objects.create(name="Others")
    with pytest.raises(InvalidInput):
        actions.share(people["conversation"], other)
    url = f"/c/{people['conversation'].pk}/share/"
    assert client_of(people["ada"]).post(url, {"team": other.pk}).status_code == HTTPStatus.NOT_FOUND


def test_readers_find_it_read_it_and_change_nothing(people):
    conversation = people["conversation"]
    url = f"/c/{conversation.pk}/"
    owner, reader, stranger = (client_of(people[name]) for name in ("ada", "ben", "eve"))
    assert reader.get(url).status_code == HTTPStatus.NOT_FOUND
    owner.post(f"{url}share/", {"team": people["team"].pk})

    page = reader.get(url).content.decode()
    assert "What is a llama?" in page
    assert "ada shares this chat with Research" in page
    assert 'id="composer"' not in page
    assert "On llamas" in reader.get("/c/shared/").content.decode()
    assert "On llamas" not in reader.get("/c/").content.decode()
    assert "Nothing is shared with you" in stranger.get("/c/shared/").content.decode()
    assert stranger.get(url).status_code == HTTPStatus.NOT_FOUND

    for path, data in (
        ("send/", {"text": "x", "model": "m"}),
        ("stop/", {}),
        ("rename/", {"title": "Mine"}),
        ("delete/", {}),
        ("share/", {"team": ""}),
    ):
        assert reader.post(url + path, data).status_code == HTTPStatus.NOT_FOUND, path
    conversation.refresh_from_db()
    assert (conversation.title, conversation.shared_with) == ("On llamas", people["team"])


def test_programs_of_readers_read_and_change_nothing(people):
    actions.share(people["conversation"], people["team"])
    reader = client_of(people["ben"])
    url = f"/api/v1/conversations/{people['conversation'].pk}/"

    assert reader.get(url).status_code == HTTPStatus.OK
    assert reader.patch(url, {"title": "Mine"}, "application/json").status_code == HTTPStatus.NOT_FOUND
    assert reader.delete(url).status_code == HTTPStatus.NOT_FOUND


@pytest.mark.django_db(transaction=True)
async def test_a_readers_socket_hears_and_does_not_write_and_closes_when_it_ends(people):
    conversation = people["conversation"]
    await database_sync_to_async(actions.share)(conversation, people["team"])
    socket = WebsocketCommunicator(ConversationConsumer.as_asgi(), f"/ws/chat/{conversation.pk}/")
    socket.scope |= {"user": people["ben"], "url_route": {"kwargs": {"pk": conversation.pk}}}
    assert (await socket.connect())[0]
    assert get_channel_layer() is not None

    message = await database_sync_to_async(conversation.messages.get)()
    for frame in ({"type": "stop"}, {"type": "retry"}):
        await socket.send_json_to(frame | {"data": {"message": str(message.pk)}})
        answer = await socket.receive_json_from()
        assert answer["data"]["code"] == "not_allowed"
    await database_sync_to_async(actions.rename)(conversation, title="On alpacas")
    assert (await socket.receive_json_from())["data"]["title"] == "On alpacas"

    await database_sync_to_async(actions.share)(conversation, None)
    closed = await socket.receive_output()
    assert (closed["type"], closed["code"]) == ("websocket.close", 4404)
