"""Whether somebody can find out through the prompt cache what another person has asked: tried with the real engine."""

from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async

from accounts import version
from accounts.models import User
from gateway import admission, completion
from gateway.meter import Meter
from gateway.models import UsageRecord
from models_admin.models import Instance
from tests.conftest import Engine
from tests.serving import gate_left_in_order, serve

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

in_db = database_sync_to_async
SECRET = "The merger with Hinkelstein & Sons is to be announced on the ninth of March. " * 24


@pytest.fixture
async def closed() -> AsyncIterator[None]:
    async with gate_left_in_order():
        yield


def _serve(engine: Engine, isolation: str) -> None:
    served = serve(engine.base_url, engine.api_key, slug="private")
    # One slot, so that the second person gets the first one's.
    launched = {"slots": 1, "context_tokens": 2048, "isolation": isolation}
    Instance.objects.filter(served=served).update(launched=launched)
    version.renew(version.CATALOG)


async def ask(user: User, text: str) -> Meter:
    caller = await admission.caller_of_user(user.pk)
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "cache_prompt": True}
    call = completion.Call(caller, "private", UsageRecord.Door.API, body)
    async with completion.run(call) as stream:
        stream.whole()
        return stream.meter


@pytest.mark.parametrize(("isolation", "tells"), [("shared", True), ("strict", False)])
async def test_what_is_cached_tells_another_person_nothing_in_strict_isolation(
    engine, closed, isolation, tells
):
    await in_db(_serve)(engine, isolation)
    ada, eve = [await in_db(User.objects.create_user)(name) for name in ("ada", "eve")]
    await ask(eve, f"Nothing to do with {isolation} anything.")
    first = await ask(ada, SECRET)
    again = await ask(ada, SECRET)

    guess = await ask(eve, SECRET)
    # And what the guess has left behind is hers, not Ada's.
    back = await ask(ada, SECRET)

    assert again.cached_tokens > first.prompt_tokens / 2
    assert (guess.cached_tokens > 30) == tells
    # In time: reading it anew takes many times what finding it takes.
    assert tells or guess.prefill_ms > again.prefill_ms
    assert (back.cached_tokens > 30) == tells
