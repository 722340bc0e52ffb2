from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.cache import cache
from django.utils import timezone

from accounts.models import User
from models_admin.models import Instance, Node
from monitoring.models import Sample
from monitoring.readings import Reading, Volume
from monitoring.sampling import sample_data
from tests.serving import serve

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    cache.clear()


@pytest.fixture
def node(db: None) -> Node:
    return Node.objects.create(name="test-node", last_seen=timezone.now())


@pytest.fixture
def member(db: None) -> User:
    return User.objects.create_user("member", password="a good password")


@pytest.fixture
def staff(db: None) -> User:
    return User.objects.create_user("staff", password="a good password", is_staff=True)


@pytest.fixture
def instance(node: Node) -> Instance:
    """A ready replica that nobody can reach."""
    return serve("http://127.0.0.1:9", "key", slug="open").instances.get()


def reading(cpu: float | None = 50.0) -> Reading:
    return Reading(
        cpu_percent=cpu,
        core_percents=[] if cpu is None else [cpu],
        memory_used_bytes=600,
        memory_total_bytes=1_000,
        load=(1.0, 2.0, 3.0),
        network_in_bytes_s=10.0,
        network_out_bytes_s=20.0,
        disk_read_bytes_s=None,
        disk_write_bytes_s=0.0,
        volumes=[Volume("data", 1, 4)],
        gpus=[],
        processes={},
    )


@pytest.fixture
def sampled(node: Node) -> Callable[..., Sample]:
    """Keep a sample of the node."""

    def keep(*, at: datetime | None = None, cpu: float | None = 50.0, **columns: Any) -> Sample:
        return Sample.objects.create(
            node=node,
            at=at or timezone.now(),
            cpu_percent=cpu,
            memory_used_bytes=600,
            load_1=1.0,
            data=sample_data(reading(cpu), {}, list(node.instances.select_related("served"))),
            **columns,
        )

    return keep


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)
