from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from django.utils import timezone

from accounts.models import Team, User
from gateway.models import UsageRecord
from models_admin.models import Instance, Node, ServedModel
from models_admin.states import InstanceState
from monitoring.models import Sample
from tests.serving import serve

pytestmark = pytest.mark.django_db


@pytest.fixture
def member(client: Client) -> Client:
    client.force_login(User.objects.create_user("member"))
    return client


@pytest.fixture
def node() -> Node:
    return Node.objects.create(name="box", last_seen=timezone.now())


def sample(node: Node, at: datetime, cpu: float, **data: Any) -> None:
    Sample.objects.create(
        node=node,
        at=at,
        cpu_percent=cpu,
        memory_used_bytes=1,
        load_1=0.5,
        data={"instances": []} | data,
    )


def test_a_machines_figures_come_in_steps(member: Client, node: Node) -> None:
    # A step's beginning, so that four samples are two steps.
    base = datetime.fromtimestamp(timezone.now().timestamp() // 60 * 60 - 120, tz=timezone.now().tzinfo)
    for second, cpu in ((0, 10.0), (10, 20.0), (60, 40.0), (70, 60.0)):
        sample(node, base + timedelta(seconds=second), cpu)
    end = (base + timedelta(seconds=90)).isoformat()

    found = member.get("/api/v1/metrics/", {"start": base.isoformat(), "end": end, "step_seconds": 60}).json()

    assert found["node"] == "box"
    assert found["at"] == [base.timestamp(), base.timestamp() + 60]
    assert found["columns"]["cpu_percent"] == [15.0, 50.0]
    assert member.get("/api/v1/metrics/").json()["step_seconds"] == 2
    day = member.get("/api/v1/metrics/", {"start": "2001-01-01T00:00:00Z"}).json()
    assert day["step_seconds"] == 144
    assert sum(one or 0 for one in day["columns"]["load_1"]) > 0


@pytest.mark.parametrize(
    ("param", "query"),
    [
        ("node", {"node": "elsewhere"}),
        ("start", {"start": "yesterday"}),
        ("end", {"end": ""}),
        ("start", {"start": "2030-01-01T00:00:00Z", "end": "2029-01-01T00:00:00Z"}),
        ("step_seconds", {"step_seconds": 0}),
        ("step_seconds", {"step_seconds": 2, "start": "2001-01-01T00:00:00Z"}),
    ],
)
def test_a_range_that_can_not_be(member: Client, node: Node, param: str, query: dict[str, Any]) -> None:
    refused = member.get("/api/v1/metrics/", query)

    assert refused.status_code == HTTPStatus.BAD_REQUEST
    assert refused.json()["param"] == param


def test_without_a_machine_there_are_no_figures(member: Client) -> None:
    assert member.get("/api/v1/metrics/").status_code == HTTPStatus.NOT_FOUND


def test_a_replicas_figures_are_for_administrators(member: Client) -> None:
    served: ServedModel = serve("http://127.0.0.1:9", "key")
    instance = Instance.objects.get(served=served)
    path = f"/api/v1/instances/{instance.pk}/metrics/"
    assert member.get(path).status_code == HTTPStatus.FORBIDDEN
    member.force_login(User.objects.create_user("boss", is_staff=True))
    assert member.get(path).status_code == HTTPStatus.NOT_FOUND

    figures = dict.fromkeys(
        ("cpu_percent", "memory_bytes", "gpu_memory_bytes", "threads", "prompt_tokens_s", "generated_tokens_s",
         "requests_processing", "requests_deferred", "slots", "slots_busy", "context_tokens", "context_used_tokens"),
        None,
    )  # fmt: skip
    row = figures | {"id": str(instance.pk), "state": InstanceState.READY, "generated_tokens_s": 41.5}
    assert instance.node is not None
    sample(instance.node, timezone.now(), 5.0, instances=[row])

    found = member.get(path).json()
    assert found["generated_tokens_s"] == 41.5
    assert found["slots"] is None


def test_requests_are_counted_for_all_and_for_each_model_one_may_use(member: Client) -> None:
    served = {
        slug: serve(f"http://127.0.0.1:{port}", "key", slug=slug) for port, slug in ((9, "a"), (10, "b"))
    }
    served["b"].teams.add(Team.objects.create(name="others"))
    cache.clear()
    for slug, ms in (("a", 100.0), ("a", 300.0), ("b", 50.0)):
        UsageRecord.objects.create(
            at=timezone.now(), model_slug=slug, finish="stop", door="api", total_ms=ms, completion_tokens=7
        )

    found = member.get("/api/v1/statistics/", {"window": "1h"}).json()

    assert (found["window"], found["capped"], found["total"]["requests"]) == ("1h", False, 3)
    assert [*found["models"]] == ["a"]
    assert (found["models"]["a"]["mean_ms"], found["models"]["a"]["completion_tokens"]) == (200.0, 14)
    assert sum(bar["requests"] for bar in found["total"]["distribution"]) == 3
    assert member.get("/api/v1/statistics/").json()["window"] == "5m"
    wrong = member.get("/api/v1/statistics/", {"window": "1w"})
    assert (wrong.status_code, wrong.json()["param"]) == (HTTPStatus.BAD_REQUEST, "window")
