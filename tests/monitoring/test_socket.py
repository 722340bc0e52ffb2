import asyncio

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser

from accounts.models import Team, User
from models_admin.models import Node
from monitoring import consumers, events
from monitoring.consumers import MonitoringConsumer
from monitoring.sampling import sample_data
from tests.monitoring.conftest import reading
from tests.serving import serve

pytestmark = pytest.mark.django_db(transaction=True)


def connected(user, path="/ws/monitoring/"):
    communicator = WebsocketCommunicator(MonitoringConsumer.as_asgi(), path)
    communicator.scope["user"] = user
    return communicator


def announce(cpu=50.0, node="test-node"):
    instances = list(
        Node.objects.get(name="test-node").instances.select_related("served").order_by("served__slug")
    )
    from django.utils import timezone

    events.sample_taken(node, timezone.now(), sample_data(reading(cpu), {}, instances))


announce_later = database_sync_to_async(announce)


@pytest.fixture
def two_models(node, member):
    serve("http://127.0.0.1:9", "key", slug="open")
    closed = serve("http://127.0.0.1:10", "key", slug="closed")
    closed.teams.add(Team.objects.create(name="others"))


async def test_nobody_gets_nothing():
    communicator = connected(AnonymousUser())
    assert (await communicator.connect())[0]
    assert (await communicator.receive_output())["code"] == 4401


async def test_a_sample_comes_in_the_contract_s_form(node, member):
    communicator = connected(member)
    await communicator.connect()
    await announce_later()
    frame = await communicator.receive_json_from()
    assert set(frame) == {"type", "data", "timestamp", "requestId"}
    assert (frame["type"], frame["requestId"]) == ("sample", None)
    assert frame["data"]["node"] == "test-node"
    assert frame["data"]["cpu"]["percent"] == 50
    await communicator.disconnect()


@pytest.mark.parametrize(("who", "slugs"), [("member", ["open"]), ("staff", ["closed", "open"])])
async def test_models_of_others_are_left_out(two_models, who, slugs):
    user, _ = await User.objects.aget_or_create(username=who, defaults={"is_staff": who == "staff"})
    communicator = connected(user)
    await communicator.connect()
    await announce_later()
    frame = await communicator.receive_json_from()
    assert [row["slug"] for row in frame["data"]["instances"]] == slugs
    await communicator.disconnect()


async def test_the_present_is_shown_at_once(sampled, member):
    await database_sync_to_async(sampled)(cpu=33.0)
    communicator = connected(member)
    await communicator.connect()
    assert (await communicator.receive_json_from())["data"]["cpu"]["percent"] == 33
    await communicator.disconnect()


async def test_one_node_can_be_asked_for(node, member):
    communicator = connected(member, "/ws/monitoring/?node=test-node")
    await communicator.connect()
    await announce_later(node="other")
    await announce_later(cpu=7.0)
    assert (await communicator.receive_json_from())["data"]["cpu"]["percent"] == 7
    assert await communicator.receive_nothing(0.05)
    await communicator.disconnect()


async def test_somebody_who_may_no_longer_is_sent_away(node, member, monkeypatch):
    communicator = connected(member)
    await communicator.connect()
    monkeypatch.setattr(consumers, "_RECHECK_S", 0.0)
    await User.objects.filter(pk=member.pk).aupdate(is_active=False)
    await announce_later()
    assert (await communicator.receive_output())["code"] == 4401


async def test_a_slow_client_gets_the_newest_and_not_a_queue(node, member, monkeypatch):
    """Its first frame hangs on the way; ten samples later it gets the last of them."""
    way_is_free, sent = asyncio.Event(), []

    async def send_slowly(self, content, close=False):
        sent.append(content["data"]["cpu"]["percent"])
        await way_is_free.wait()

    monkeypatch.setattr(MonitoringConsumer, "send_json", send_slowly)
    seen = asyncio.Event()
    offer = MonitoringConsumer._offer

    def offer_and_tell(self, node, at, data):
        offer(self, node, at, data)
        if data["cpu"]["percent"] == 10:
            seen.set()

    monkeypatch.setattr(MonitoringConsumer, "_offer", offer_and_tell)
    communicator = connected(member)
    await communicator.connect()
    for cpu in range(1, 11):
        await announce_later(cpu=float(cpu))
    async with asyncio.timeout(30):
        await seen.wait()
        way_is_free.set()
        while len(sent) < 2 or sent[-1] != 10:
            await asyncio.sleep(0)
    assert sent == [1, 10]
    await communicator.disconnect()


async def test_what_a_client_says_is_ignored(node, member):
    communicator = connected(member)
    await communicator.connect()
    await communicator.send_json_to({"type": "anything"})
    await announce_later()
    assert (await communicator.receive_json_from())["type"] == "sample"
    await communicator.disconnect()
