"""Fairness with the real engine: somebody's burst beside somebody's single requests; weights; what admission costs.

    python -m benchmarks fairness

One replica of the demo model with one slot. A person with 200 requests waiting is met by one who asks once a second;
then two people with more than can be served, of weights 1 and 3, share it for a while.
"""

import asyncio
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from benchmarks.environment import DATA_DIR, free_port
from benchmarks.portal import Portal

_BURST, _SINGLES, _SHARED_S, _ADMISSIONS = 200, 20, 40.0, 2000
_SLUG, _CONTEXT_TOKENS = "fair", 2048
_READY_S = 60


@contextmanager
def _engine() -> Iterator[tuple[str, str]]:
    """One llama-server with the demo model and one slot; its address and key."""
    from llamaproj import env
    from llamaproj.up import demo
    from models_admin.engine import engine, launch
    from models_admin.engine.launch_config import LaunchConfig

    model = demo.install_file(DATA_DIR / "models")
    if model is None:
        raise RuntimeError("the demo model isn't installed")
    key, port = secrets.token_urlsafe(16), free_port()
    spec = launch.LaunchSpec(
        model_path=str(model),
        alias=_SLUG,
        host="127.0.0.1",
        port=port,
        config=LaunchConfig(slots=1, context_tokens=_CONTEXT_TOKENS),
    )
    with (DATA_DIR / "logs" / "engine.log").open("wb") as log:
        process = subprocess.Popen(
            spec.argv(engine.find()),
            cwd=env.BASE_DIR,
            env={**os.environ, "LLAMA_API_KEY": key},
            stdout=log,
            stderr=log,
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}", key
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_healthy(url: str) -> None:
    import httpx

    deadline = time.monotonic() + _READY_S
    while True:
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"the engine didn't start in {_READY_S} s")
        time.sleep(0.05)


def _rows(port: int, key: str) -> list[int]:
    """The model with its replica, and three people: the third in a team of weight 3."""
    from django.utils import timezone

    from accounts.models import Membership, Team, User
    from models_admin.models import Instance, ModelFile, Node, ServedModel
    from models_admin.secret_box import seal
    from models_admin.states import InstanceState

    now = timezone.now()
    node = Node.objects.create(name="bench", last_seen=now)
    file = ModelFile.objects.create(node=node, path="/models/fair.gguf", size_bytes=1, modified_at=now)
    served = ServedModel.objects.create(slug=_SLUG, name="Fair", file=file, enabled=True, desired_replicas=1)
    Instance.objects.create(
        served=served,
        node=node,
        state=InstanceState.READY,
        port=port,
        api_key_encrypted=seal(key),
        ready_at=now,
        launched={"slots": 1, "context_tokens": _CONTEXT_TOKENS, "host": "127.0.0.1"},
    )
    people = [User.objects.create_user(name) for name in ("burst", "single", "heavy")]
    team = Team.objects.create(name="heavy", weight=3)
    Membership.objects.create(team=team, user=people[2])
    return [person.pk for person in people]


async def _ask(user_pk: int, tokens: int, got: Counter[int]) -> tuple[float, float]:
    """One request: seconds from asking to a slot, and in the slot."""
    from gateway import admission, completion
    from gateway.models import UsageRecord

    text = f"Count from {secrets.randbelow(1000)} on."
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": False,
    }
    call = completion.Call(
        await admission.caller_of_user(user_pk), _SLUG, UsageRecord.Door.API, body, patience_s=300
    )
    async with completion.run(call) as stream:
        stream.whole()
        meter = stream.meter
    got[user_pk] += meter.prompt_tokens + 2 * meter.completion_tokens
    assert meter.routed is not None
    return meter.queue_ms / 1000, time.monotonic() - meter.routed


async def _singles(burst: int, single: int) -> str:
    got: Counter[int] = Counter()
    await _ask(single, 24, got)
    queued = [asyncio.create_task(_ask(burst, 24, got)) for _ in range(_BURST)]
    await asyncio.sleep(2)
    found = []
    for _ in range(_SINGLES):
        began = time.monotonic()
        found.append(await _ask(single, 24, got))
        await asyncio.sleep(max(0.0, 1 - (time.monotonic() - began)))
    for task in queued:
        task.cancel()
    await asyncio.gather(*queued, return_exceptions=True)
    wait, service = median(one[0] for one in found), median(one[1] for one in found)
    return (
        f"one a second beside {_BURST} queued: median wait {wait * 1000:.0f} ms = "
        f"{wait / service:.2f} x the service time of one request ({service * 1000:.0f} ms)"
    )


async def _shares(light: int, heavy: int) -> str:
    got: Counter[int] = Counter()

    async def keep_asking(user_pk: int) -> None:
        while True:
            await _ask(user_pk, 24, got)

    tasks = [asyncio.create_task(keep_asking(pk)) for pk in (light, heavy) for _ in range(6)]
    await asyncio.sleep(_SHARED_S)
    ratio = got[heavy] / max(1, got[light])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return f"weights 1 : 3 in {_SHARED_S:.0f} s: tokens 1 : {ratio:.2f} ({sum(got.values()):,} in all)"


async def _cost(user_pk: int) -> str:
    from gateway import admission
    from gateway.admission import Ask

    entered, left = [], []
    for _ in range(_ADMISSIONS):
        caller = await admission.caller_of_user(user_pk)
        began = time.perf_counter()
        ticket = await admission.admit(Ask(caller, _SLUG, prompt_tokens=50, completion_tokens=50))
        entered.append(time.perf_counter() - began)
        began = time.perf_counter()
        await ticket.close(b"", 50, 50, outcome="ok")
        left.append(time.perf_counter() - began)
    entered.sort()
    left.sort()
    middle, late = _ADMISSIONS // 2, _ADMISSIONS * 99 // 100
    return (
        f"admission: p50 {entered[middle] * 1e6:.0f} us, p99 {entered[late] * 1e6:.0f} us; "
        f"settling: p50 {left[middle] * 1e6:.0f} us, p99 {left[late] * 1e6:.0f} us"
    )


async def _all(people: Sequence[int]) -> None:
    from gateway import admission
    from gateway.upstream import close_session

    burst, single, heavy = people
    print(await _cost(single), flush=True)
    print(await _singles(burst, single), flush=True)
    print(await _shares(single, heavy), flush=True)
    await admission.stop()
    await close_session()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    with Portal("web"), _engine() as (url, key):
        import uvloop

        people = _rows(int(url.rsplit(":", 1)[1]), key)
        uvloop.run(_all(people))
    return 0


if __name__ == "__main__":
    sys.exit(main())
