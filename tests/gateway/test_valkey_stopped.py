"""The gate without its memory: Valkey is stopped, or answers no more, while requests come; then it is back."""

import asyncio
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from channels.db import database_sync_to_async

from accounts import key_actions, version
from accounts.models import User
from gateway import admission
from gateway.models import Limit, UsageRecord
from gateway.usage.drain import drain
from llamaproj.up.valkey import Valkey
from tests.fake_engine import FakeEngine, Script
from tests.gateway.program import Program, payloads, text_of
from tests.serving import gate_left_in_order, serve

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

in_db = database_sync_to_async
# How long who comes waits for Valkey; as long as it takes to see it, rather than as long as people would.
WAITED_S = 2.0
ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 300}


class OwnValkey:
    """One of this test alone, as the portal runs it."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "valkey.sock"
        self._server = Valkey(data=folder / "data", socket=self.socket, log_file=folder / "log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._server.prepare()
        program = self._server.program()
        options = program.popen_options() | {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(program.argv, **options)
        deadline = time.monotonic() + 20
        while not self._server.is_ready():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def freeze(self, signum: signal.Signals = signal.SIGSTOP) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def valkey(settings) -> Iterator[OwnValkey]:
    # Not in pytest's folders: the path of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="llamaproj-valkey-"))
    valkey = OwnValkey(folder)
    valkey.start()
    settings.REDIS_URL = f"unix://{valkey.socket}?db=0"
    settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": settings.REDIS_URL}}
    try:
        yield valkey
    finally:
        valkey.stop()
        shutil.rmtree(folder)


@pytest.fixture
async def engine(valkey: OwnValkey) -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as engine, gate_left_in_order():
        yield engine


@pytest.fixture
async def user() -> User:
    return await in_db(User.objects.create_user)("ada")


@pytest.fixture
async def program(engine: FakeEngine, user: User) -> Program:
    def make() -> str:
        serve(engine.base_url, engine.api_key)
        Limit.objects.create(user=user, concurrent_requests=8, completion_tokens_per_day=10**6)
        version.renew()
        return key_actions.create_api_key(user=user, name="test", by=None)[1]

    return Program(await in_db(make)())


async def until(found, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not await found():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_what_runs_goes_on_what_comes_is_told_when_to_come_again_and_nothing_is_lost(
    valkey, engine, program, user, monkeypatch
):
    # The package gives the name of the module to the function.
    monkeypatch.setattr(import_module("gateway.admission.gate"), "_GONE_S", WAITED_S)
    short, long = (
        program.stream(ASK | {"fake": {"tokens": tokens, "interval_ms": 30}}) for tokens in (40, 200)
    )
    for stream in (short, long):
        await stream.until(b"w1 ")

    valkey.stop()
    began = time.monotonic()
    come = [program.post(ASK), program.post(ASK | {"stream": True}), program.get("/v1/models")]
    come.append(Program("sk-nobodys").post(ASK))
    refused = await asyncio.gather(*come)

    assert WAITED_S <= time.monotonic() - began < WAITED_S + 3
    for response in refused[:3]:
        said = payloads(response.content)[-1] if response.status_code == 200 else response.content
        assert b"out of reach" in (said if isinstance(said, bytes) else said.encode())
    for response in (refused[0], refused[2]):
        assert response.status_code == 503
        assert 1 <= int(response["retry-after"]) <= 60
        assert response.json()["error"]["type"] == "server_error"
    # Who holds no key at all learns nothing else.
    assert refused[3].status_code == 401
    # What ran has never noticed, and what ended meanwhile is written down.
    ended = await short.response()
    assert text_of(ended.content) == "".join(f"w{i} " for i in range(40))
    assert payloads(ended.content)[-1] == "[DONE]"
    assert await UsageRecord.objects.filter(finish="stop", completion_tokens=40).acount() == 1
    assert not long.task.done()

    waits = asyncio.ensure_future(program.post(ASK))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(valkey.start)

    assert (await waits).status_code == 200
    assert payloads((await long.response()).content)[-1] == "[DONE]"

    async def is_settled() -> bool:
        await in_db(drain)()
        written = [count async for count in UsageRecord.objects.values_list("completion_tokens", flat=True)]
        (use,) = await in_db(admission.use_of)([("user", user.pk)])
        return (use.concurrent_requests, use.completion_tokens_per_day, len(written)) == (0, sum(written), 5)

    await until(is_settled)


async def test_a_valkey_that_is_silent_for_a_moment_delays_and_refuses_nobody(valkey, engine, program):
    engine.scripts = [Script(tokens=60, interval_ms=30)]
    runs = program.stream(ASK)
    await runs.until(b"w1 ")

    valkey.freeze()
    waits = [asyncio.ensure_future(program.post(ASK)) for _ in range(4)]
    await asyncio.sleep(1)
    assert not any(one.done() for one in waits)
    valkey.freeze(signal.SIGCONT)

    assert [one.status_code for one in await asyncio.gather(*waits)] == [200] * 4
    assert payloads((await runs.response()).content)[-1] == "[DONE]"
