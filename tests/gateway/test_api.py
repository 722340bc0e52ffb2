"""The OpenAI-compatible door: what programs get, and what they are refused."""

import asyncio
import json

import pytest
from channels.db import database_sync_to_async

from accounts import key_actions
from accounts.models import ApiKey, Team
from models_admin.models import Instance, ServedModel
from models_admin.states import InstanceState
from tests.fake_engine import FakeEngine, Script
from tests.gateway.program import CHAT, Program, payloads, the_record
from tests.serving import add_replica

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async


def ask(**more: object) -> dict[str, object]:
    return {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **more}


async def test_an_answer_as_a_whole(fake, served, program):
    fake.scripts = [Script(text="Good morning.")]

    response = await program.post(ask())

    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Good morning."
    record = await the_record()
    assert (record.status, record.finish, record.door, record.completion_tokens) == (200, "stop", "api", 4)


async def test_an_answer_as_a_stream(fake, served, program):
    fake.scripts = [Script(tokens=5)]

    response = await program.post(ask(stream=True))
    chunks = payloads(response.content)

    assert response["content-type"] == "text/event-stream"
    assert response["x-llamaproj-instance"]
    assert chunks[-1] == "[DONE]"
    text = "".join(json.loads(one)["choices"][0]["delta"].get("content") or "" for one in chunks[:-1])
    assert text == "w0 w1 w2 w3 w4 "
    record = await the_record()
    assert (record.finish, record.completion_tokens) == ("stop", 5)
    assert record.first_token_ms is not None


async def test_a_replica_that_fails_before_the_first_token_is_replaced_unseen(fake, served, program):
    async with FakeEngine() as second:
        await in_db(add_replica)(served, second.base_url, second.api_key)
        fake.scripts = [Script(drop=True)]
        second.scripts = [Script(drop=True)]

        response = await program.post(ask(stream=True))

        assert (payloads(response.content))[-1] == "[DONE]"


async def test_an_error_in_mid_stream_is_an_error_object_and_the_end(fake, served, program):
    fake.scripts = [Script(tokens=50, cut_after=10)]

    # One with tools can't go on at another replica.
    chunks = payloads((await program.post(ask(stream=True, tools=[{"type": "function"}]))).content)

    assert json.loads(chunks[-1])["error"]["code"] == "upstream_lost"
    assert (await the_record()).finish == "error"


async def test_a_client_that_goes_away_frees_the_slot(fake, served, program):
    fake.scripts = [Script(tokens=10_000, interval_ms=5)]
    connection = program.stream(ask())
    await connection.until(b"w1 ")
    assert fake.busy_slots == 1

    connection.leave()

    async with asyncio.timeout(1):
        while fake.busy_slots:
            await asyncio.sleep(0.01)
    await connection.response()
    record = await the_record()
    assert record.finish == "cancelled"
    # The engine's count comes with the end that nobody waited for; the estimate stands for it.
    assert record.prompt_tokens > 0


async def test_a_prompt_too_long_says_how_long_it_may_be(fake, served, program):
    fake.context_tokens = 1

    response = await program.post({"model": "fake", "messages": [{"role": "user", "content": "a b c"}]})

    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "at most 1" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ({}, "model"),
        ({"model": 3}, "model"),
        ({"model": "fake"}, "messages"),
        ({"model": "fake", "messages": []}, "messages"),
        ({"model": "fake", "messages": [3]}, "messages[0]"),
        ({"model": "fake", "messages": [{"content": "x"}]}, "messages[0]"),
        ({"model": "fake", "messages": [{"role": "user", "content": "x"}], "stream": "yes"}, "stream"),
    ],
)
async def test_a_bad_body_is_refused_in_words(fake, served, program, body, param):
    response = await program.post(body)

    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert fake.requests == []


async def test_garbage_is_refused_in_words(served, program):
    for data in (b"", b"{", b"\xff", b"[" * 5000):
        response = await program.send(data)
        assert response.status_code == 400
        assert response.json()["error"]["message"]


async def test_no_key_a_wrong_key_and_a_revoked_key_get_nothing(served, user):
    row, key = await in_db(key_actions.create_api_key)(user=user, name="old", by=None)
    await in_db(key_actions.revoke_api_key)(row, by=None)
    for program in (Program(""), Program("sk-wrong"), Program(key)):
        for path in ("/v1/models", "/v1/models/fake"):
            response = await program.get(path)
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
        assert (await program.send("{}")).status_code == 401


async def test_a_model_of_another_team_looks_unknown(served, program):
    team = await in_db(Team.objects.create)(name="others")
    await in_db(served.teams.add)(team)

    assert (await program.get("/v1/models")).json()["data"] == []
    assert (await program.get("/v1/models/fake")).status_code == 404
    response = await program.post(ask())
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_a_model_that_is_stopped_says_so(fake, served, program):
    await Instance.objects.aupdate(state=InstanceState.STOPPED, port=None)
    await ServedModel.objects.aupdate(desired_replicas=0)

    response = await program.post(ask())

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_not_running"


async def test_the_models_one_may_use_are_listed(served, program):
    listed = (await program.get("/v1/models")).json()

    assert [one["id"] for one in listed["data"]] == ["fake"]
    assert (await program.get("/v1/models/fake")).json()["id"] == "fake"


async def test_a_key_shows_that_it_asked_for_models(served, program, user):
    await program.get("/v1/models")

    assert (await ApiKey.objects.aget()).last_used_at is not None


async def test_unknown_endpoints_and_methods_are_openai_errors(served, program):
    assert (await program.get("/v1/nothing")).json()["error"]["code"] == "not_found"
    response = await program.get(CHAT)
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_allowed"


async def test_a_client_cannot_choose_a_slot(fake, served, program):
    await program.post(ask(id_slot=2))

    assert "id_slot" not in fake.requests[0]


async def test_what_nobody_foresaw_is_told_in_one_neutral_sentence(fake, served, program, monkeypatch):
    async def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("gateway.admission.admit", broken)

    response = await program.post(ask())

    assert response.status_code == 500
    error = response.json()["error"]
    assert error["type"] == "server_error"
    assert "secret detail" not in error["message"]


async def test_a_body_too_large_is_refused(served, program):
    response = await program.send(b" " * (17 * 1024 * 1024))

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
