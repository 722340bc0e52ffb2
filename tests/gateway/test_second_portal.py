"""Another portal as an external server: this process's gateway, a real second portal, a real engine behind it."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async

from gateway.models import UsageRecord
from gateway.usage.drain import drain
from models_admin.external import actions as external_actions
from models_admin.external import external
from models_admin.models import ExternalServer, ServedModel
from models_admin.states import InstanceState
from tests.gateway.program import payloads
from tests.portal import DEMO_MODEL, Portal
from tests.serving import gate_left_in_order

in_db = database_sync_to_async

pytestmark = [pytest.mark.portal, pytest.mark.slow, pytest.mark.django_db(transaction=True)]


@pytest.fixture(scope="module")
def their_key(portal: Portal) -> str:
    created = portal.manage("apikey", "create", "--user", portal.username, "--name", "first-portal")
    return created.splitlines()[-1]


@pytest.fixture
async def served(portal: Portal, their_key: str) -> AsyncIterator[ServedModel]:
    @database_sync_to_async
    def make() -> ServedModel:
        # Without /v1, as a person copies it from the address bar.
        server = external_actions.add(by=None, name="second", base_url=portal.base_url, api_key=their_key)
        assert external.check(server).healthy
        server.refresh_from_db()
        return external_actions.serve(server, DEMO_MODEL, by=None, slug="theirs")

    async with gate_left_in_order():
        yield await make()


def ask(**more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": "Say hello."}]
    return {"model": "theirs", "messages": messages, "max_tokens": 8, "temperature": 0, **more}


async def test_a_second_portal_answers_through_this_one(portal, served, program):
    server = await ExternalServer.objects.aget()
    assert server.base_url == f"{portal.base_url}/v1"
    assert server.models_offered == [DEMO_MODEL]
    instance = await served.instances.aget()
    assert (instance.state, instance.node_id) == (InstanceState.READY, None)

    whole = (await program.post(ask())).json()
    chunks = payloads((await program.post(ask(stream=True))).content)

    text = whole["choices"][0]["message"]["content"]
    assert text
    parsed = [json.loads(one) for one in chunks[:-1]]
    assert chunks[-1] == "[DONE]"
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in parsed) == text
    assert {one["model"] for one in [whole, *parsed]} == {"theirs"}
    records: list[UsageRecord] = []
    async with asyncio.timeout(60):
        while len(records) < 2:
            # A stream is settled a moment after its last event.
            await in_db(drain)()
            theirs = UsageRecord.objects.filter(model_slug="theirs")
            records = [record async for record in theirs.order_by("at")]
    first, second = records
    for record in (first, second):
        assert 0 < record.completion_tokens <= 8
        assert record.prompt_tokens > 5
    assert first.completion_tokens == second.completion_tokens == whole["usage"]["completion_tokens"]
    # The second portal counted the same, for the key it gave us; its records are written within seconds.
    sql = (
        "SELECT r.completion_tokens FROM gateway_usagerecord r JOIN accounts_apikey k ON k.id = r.api_key_id"
        " WHERE k.name = 'first-portal' ORDER BY r.at DESC LIMIT 2"
    )
    async with asyncio.timeout(60):
        while [count for (count,) in portal.query(sql)] != [
            second.completion_tokens,
            first.completion_tokens,
        ]:
            await asyncio.sleep(0.2)


async def test_a_text_too_long_for_the_second_portal_is_explained(served, program):
    response = await program.post(ask(messages=[{"role": "user", "content": "word " * 6000}]))

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_a_revoked_key_is_an_administrators_business(served):
    @database_sync_to_async
    def lose_the_key() -> tuple[str, str]:
        server = ExternalServer.objects.get()
        changed = external_actions.change(
            server, by=None, name=server.name, base_url=server.base_url, api_key="sk-revoked"
        )
        return external.check(changed).problem, served.instances.get().state

    problem, state = await lose_the_key()
    assert "wants a key" in problem
    assert state == InstanceState.UNREACHABLE
