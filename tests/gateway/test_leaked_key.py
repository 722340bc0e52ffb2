"""A leaked key: in use in every web process, by short requests, streams and whole answers, when it is revoked."""

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
from tests.gateway.held import held, wait_until_free
from tests.portal import DEMO_MODEL, Portal, free_port

pytestmark = [pytest.mark.portal, pytest.mark.slow, pytest.mark.timeout(300)]

MORE_DOORS = 2
REFUSED_WITHIN_S = 1.0
# The process that relays an answer looks once a second; the rest is for a busy machine.
ENDED_WITHIN_S = 3.0
ENDLESS = {
    "model": DEMO_MODEL,
    "ignore_eos": True,
    "max_tokens": 1500,
    "messages": [{"role": "user", "content": "Count to a million."}],
}


@pytest.fixture
def doors(portal: Portal) -> Iterator[list[str]]:
    """The portal's web process, and others of the same portal."""
    ports = [free_port() for _ in range(MORE_DOORS)]
    server = [sys.executable, "-m", "uvicorn", "llamaproj.asgi:application", "--no-access-log"]
    server += ["--timeout-graceful-shutdown", "1", "--port"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    more = [
        subprocess.Popen([*server, str(port)], cwd=env.BASE_DIR, env=portal.env, **quiet) for port in ports
    ]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        deadline = time.monotonic() + 60
        while not all(serves(url) for url in urls):
            assert time.monotonic() < deadline, "the other web processes didn't start"
            time.sleep(0.1)
        yield [portal.base_url, *urls]
    finally:
        for process in more:
            process.terminate()
        for process in more:
            process.wait(60)


def serves(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    return False


class Thief(threading.Thread):
    """Uses the key at one door in one way. `seen` is what came: when it was asked, when it ended, status, answer."""

    def __init__(self, door: str, key: str, stopped: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url, self.stopped = f"{door}/v1/chat/completions", stopped
        self.client = httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=60)
        self.began = threading.Event()
        self.asked = self.ended = 0.0
        self.status = 0
        self.last: dict[str, object] = {}

    def run(self) -> None:
        with self.client:
            self.use()
        self.ended = time.monotonic()

    def use(self) -> None:
        raise NotImplementedError


class Looking(Thief):
    """Asks again and again for what takes no time; remembers when it was last let in, and refused first."""

    def use(self) -> None:
        models = self.url.replace("chat/completions", "models")
        while not self.stopped.is_set():
            asked = time.monotonic()
            status = self.client.get(models).status_code
            if status == 200:
                self.asked = asked
                self.began.set()
            else:
                self.status = status
            time.sleep(0.02)


class Streaming(Thief):
    def use(self) -> None:
        with self.client.stream("POST", self.url, json=ENDLESS | {"stream": True}) as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    self.last = json.loads(line[6:])
                    self.began.set()


class Waiting(Thief):
    """Wants a whole answer, which is silent until its end."""

    def use(self) -> None:
        self.began.set()
        answer = self.client.post(self.url, json=ENDLESS)
        self.status, self.last = answer.status_code, answer.json()


def test_a_revoked_key_is_refused_everywhere_at_once_and_what_it_has_begun_ends(portal, doors):
    owners = portal.manage(
        *("apikey", "create", "--user", portal.username, "--name", "owners"),
        *(word for scope in ("inference", "read", "write") for word in ("--scope", scope)),
    ).split()[-1]
    keys = f"{portal.base_url}/api/v1/keys/"
    owner = {"authorization": f"Bearer {owners}"}
    made = httpx.post(keys, json={"name": "leaked"}, headers=owner, timeout=30).json()
    stopped = threading.Event()
    looking = [Looking(door, made["key"], stopped) for door in doors]
    streaming = [Streaming(door, made["key"], stopped) for door in doors]
    # More than there are slots: some of these stand in line.
    waiting = [Waiting(door, made["key"], stopped) for door in doors]
    for thieves in (looking, streaming, waiting):
        for thief in thieves:
            thief.start()
        for thief in thieves:
            assert thief.began.wait(60)
    deadline = time.monotonic() + 30
    while held(portal).get("requests") != len(streaming) + len(waiting):
        assert time.monotonic() < deadline, held(portal)
        time.sleep(0.02)

    revoked = httpx.delete(f"{keys}{made['id']}/", headers=owner, timeout=30)
    since = time.monotonic()
    for thief in (*streaming, *waiting):
        thief.join(60)
    stopped.set()
    for thief in looking:
        thief.join(60)

    assert revoked.status_code == 204
    for thief in looking:
        assert thief.status == 401
        assert thief.asked - since < REFUSED_WITHIN_S
    for thief in (*streaming, *waiting):
        assert not thief.is_alive()
        assert thief.ended - since < ENDED_WITHIN_S, type(thief)
        error = thief.last["error"]
        assert isinstance(error, dict)
        assert error["type"] == "authentication_error"
    assert {thief.status for thief in streaming} == {200}
    assert {thief.status for thief in waiting} == {401}
    assert wait_until_free(portal, 2)[1] == {}
