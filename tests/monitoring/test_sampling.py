import asyncio

import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.utils import timezone

from models_admin.models import Node
from models_admin.states import InstanceState
from monitoring import events, sampling, tasks
from monitoring.models import Sample
from tests.fake_engine import FakeEngine
from tests.serving import serve

pytestmark = pytest.mark.django_db


def test_a_sample_is_kept(node, instance):
    taken = sampling.sample(node.name)
    kept = Sample.objects.get()
    assert kept == taken
    assert kept.data["memory"]["used_bytes"] == kept.memory_used_bytes > 0
    (row,) = kept.data["instances"]
    assert (row["slug"], row["state"], row["cpu_percent"], row["slots"]) == ("open", "ready", None, None)
    # A server that says nothing is not one that does nothing.
    assert kept.requests_processing is None


def test_a_node_without_models_generates_nothing(node):
    taken = sampling.sample(node.name)
    assert (taken.generated_tokens_s, taken.requests_processing) == (0, 0)


def test_only_one_sample_is_taken_at_a_time(node):
    with sampling._one_at_a_time:
        assert sampling.sample(node.name) is None
    assert not Sample.objects.exists()


def test_stopped_instances_are_history(node, instance):
    instance.move_to(InstanceState.STOPPED)
    assert sampling.sample(node.name).data["instances"] == []


@pytest.mark.django_db(transaction=True)
async def test_a_server_s_metrics_are_in_the_sample():
    async with FakeEngine(slots=3) as engine:
        await asyncio.to_thread(serve, engine.base_url, engine.api_key)
        taken = await asyncio.to_thread(sampling.sample, "test-node")
    (row,) = taken.data["instances"]
    assert (row["slots"], row["slots_busy"], row["requests_processing"]) == (3, 0, 0)
    metrics = await asyncio.to_thread(sampling.remembered_metrics, "test-node")
    assert metrics[row["id"]]["tokens_predicted_total"] == 0


def test_a_sample_is_announced(node):
    layer = get_channel_layer()

    @async_to_sync
    async def heard():
        channel = await layer.new_channel()
        await layer.group_add(events.GROUP, channel)
        await asyncio.to_thread(events.sample_taken, "n", timezone.now(), {"cpu": 1})
        async with asyncio.timeout(30):
            return await layer.receive(channel)

    message = heard()
    assert (message["type"], message["node"], message["data"]) == ("monitoring.sample", "n", {"cpu": 1})


def test_every_living_node_is_asked(node, monkeypatch):
    Node.objects.create(name="dead", last_seen=timezone.now() - timezone.timedelta(minutes=5))
    Node.objects.create(name="never")
    asked = []
    monkeypatch.setattr(tasks.sample_node, "apply_async", lambda **how: asked.append(how))
    tasks.tick()
    assert asked == [{"args": ("test-node",), "queue": "node.test-node", "expires": 2}]
