"""A running portal watches an external server by itself: its own clock, its own worker."""

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.fake_openai import WORDS, FakeOpenAI, in_thread
from tests.portal import Portal

pytestmark = [pytest.mark.portal, pytest.mark.slow, pytest.mark.timeout(300)]

NAME, MODEL = "watched-box", "watched-model"


def wait_for(portal: Portal, state: str, limit_s: float) -> float:
    """Seconds until the model's instance is in that state."""
    began = time.monotonic()
    sql = (
        "SELECT i.state, i.reason FROM models_admin_instance i JOIN models_admin_servedmodel s ON s.id = i.served_id"
        " WHERE s.slug = %s"
    )
    while (found := portal.query(sql, MODEL)) != [] and found[0][0] != state:
        assert time.monotonic() - began < limit_s, found
        time.sleep(0.2)
    return time.monotonic() - began


@pytest.fixture
def watching(portal: Portal) -> Iterator[Portal]:
    """The portal, which afterwards knows nothing of the server any more."""
    yield portal
    portal.manage("models", "stop", MODEL)
    wait_for(portal, "stopped", 60)
    portal.manage("models", "remove", MODEL)
    portal.manage("models", "external", "remove", NAME)


def test_a_server_that_goes_and_comes_back_is_noticed_without_anybody_asking(watching: Portal) -> None:
    portal = watching
    key = portal.manage("apikey", "create", "--user", portal.username, "--name", NAME).splitlines()[-1]
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}

    def asked() -> httpx.Response:
        return httpx.post(f"{portal.base_url}/v1/chat/completions", json=body, headers=headers, timeout=90)

    with in_thread() as start:
        server = start(FakeOpenAI(models=[MODEL]))
        portal.manage("models", "external", "add", NAME, server.origin)
        portal.manage("models", "external", "serve", NAME, MODEL)
        wait_for(portal, "ready", 10)
        chunks = [json.loads(line[6:]) for line in asked().text.splitlines() if line.startswith("data: {")]
        assert "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks) == "".join(WORDS)

        server.conduct = "500"
        # The clock comes every 15 seconds; a busy machine is late.
        wait_for(portal, "unreachable", 90)
        server.conduct = ""
        wait_for(portal, "ready", 90)

        checks = len(server.asked)
        server.conduct = "500"
        assert asked().status_code == 502
        wait_for(portal, "unreachable", 90)
        assert len(server.asked) > checks
