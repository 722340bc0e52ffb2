"""A key leaked: it is in use by streams and requests of two web processes when its owner revokes it."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from llamaproj import env
from tests.portal import DEMO_MODEL, Portal, free_port

pytestmark = [pytest.mark.portal, pytest.mark.slow]

# A stream is ended by the heartbeat of the process that relays it.
_ENDED_WITHIN_S = 5.0


@pytest.fixture
def doors(portal: Portal) -> Iterator[list[str]]:
    """The portal's web process, and a second one."""
    port = free_port()
    second = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "uvicorn",
            "--no-access-log",
            "--port",
            str(port),
            "llamaproj.asgi:application",
        ],
        cwd=env.BASE_DIR,
        env=portal.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/healthz", timeout=2).status_code == 200:
                    break
            assert time.monotonic() < deadline, "the second web process didn't start"
            time.sleep(0.1)
        yield [portal.base_url, url]
    finally:
        second.terminate()
        second.wait(20)


def key_of(portal: Portal, name: str, *rights: str) -> str:
    return portal.manage("apikey", "create", "--user", portal.username, "--name", name, *rights).split()[-1]


class Stream(threading.Thread):
    """One that would go on for long."""

    def __init__(self, door: str, key: str) -> None:
        super().__init__(daemon=True)
        self.door, self.key = door, key
        self.events: list[dict[str, object]] = []
        self.began = threading.Event()
        self.ended_at = 0.0

    def run(self) -> None:
        body = {
            "model": DEMO_MODEL,
            "stream": True,
            "ignore_eos": True,
            "max_tokens": 1500,
            "messages": [{"role": "user", "content": "Count to a million"}],
        }
        headers = {"authorization": f"Bearer {self.key}"}
        url = f"{self.door}/v1/chat/completions"
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    self.events.append(json.loads(line[6:]))
                    self.began.set()
        self.ended_at = time.monotonic()


def test_a_revoked_key_is_refused_everywhere_at_once_and_its_streams_end(portal, doors):
    leaked = key_of(portal, "leaked")
    owners = key_of(portal, "owners", "--scope", "write", "--scope", "read")
    listed = httpx.get(
        f"{portal.base_url}/api/v1/keys/?search={leaked[:10]}",
        headers={"authorization": f"Bearer {owners}"},
        timeout=10,
    ).json()["results"]
    streams = [Stream(door, leaked) for door in doors]
    for stream in streams:
        stream.start()
    for stream in streams:
        assert stream.began.wait(30), "no stream began"
    used = {"authorization": f"Bearer {leaked}"}
    for door in doors:
        assert httpx.get(f"{door}/v1/models", headers=used, timeout=10).status_code == 200

    revoked = httpx.delete(
        f"{portal.base_url}/api/v1/keys/{listed[0]['id']}/",
        headers={"authorization": f"Bearer {owners}"},
        timeout=10,
    )
    since = time.monotonic()

    assert revoked.status_code == 204
    short = {"model": DEMO_MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
    for door in doors:
        # Not within a second: at once.
        said = [
            httpx.get(f"{door}/v1/models", headers=used, timeout=10),
            httpx.post(f"{door}/v1/chat/completions", json=short, headers=used, timeout=30),
        ]
        assert [answer.status_code for answer in said] == [401, 401]
        assert said[1].json()["error"]["type"] == "authentication_error"
    for stream in streams:
        stream.join(30)
        assert not stream.is_alive()
        assert stream.ended_at - since < _ENDED_WITHIN_S
        assert "error" in stream.events[-1], stream.events[-1]
