"""The gateway before servers that are no llama-servers of ours."""

import json
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async

from models_admin.external import actions as external_actions
from models_admin.external import external
from models_admin.external import tasks as external_tasks
from models_admin.models import ExternalServer, ServedModel
from tests.fake_openai import WORDS, FakeOpenAI
from tests.gateway.program import payloads, the_record
from tests.serving import gate_left_in_order

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async
KEY = "sk-theirs"
THEIRS = "vendor/llama3:latest"


@pytest.fixture
async def server() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI(models=[THEIRS], key=KEY, root="/engines/v1") as server, gate_left_in_order():
        yield server


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The servers that somebody was told to look after."""
    pks: list[int] = []
    monkeypatch.setattr(external_tasks, "check_soon", pks.append)
    return pks


def known(server: FakeOpenAI) -> ServedModel:
    row = external_actions.add(by=None, name="box", base_url=server.base_url, api_key=server.key)
    assert external.check(row).healthy
    row.refresh_from_db()
    return external_actions.serve(row, THEIRS, by=None)


@pytest.fixture
async def served(server: FakeOpenAI) -> ServedModel:
    return await in_db(known)(server)


def ask(**more: object) -> dict[str, object]:
    return {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], **more}


def text_of(chunks: list[str]) -> str:
    parsed = [json.loads(one) for one in chunks if one != "[DONE]"]
    return "".join(one["choices"][0]["delta"].get("content") or "" for one in parsed if one["choices"])


async def test_a_whole_answer_carries_the_portals_name_and_is_counted(server, served, program):
    response = await program.post(ask(cache_prompt=True, id_slot=3, temperature=0.5, min_p=0.1))

    answer = response.json()
    assert answer["choices"][0]["message"]["content"] == "".join(WORDS)
    assert answer["model"] == "llama3"
    [asked] = server.requests
    assert asked == {
        "model": THEIRS,
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "min_p": 0.1,
    }
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    record = await the_record()
    assert (record.finish, record.prompt_tokens, record.completion_tokens) == ("stop", 7, 4)


async def test_a_stream_carries_the_portals_name_and_is_counted_without_timings(server, served, program):
    server.interval_s = 0.03

    chunks = payloads((await program.post(ask(stream=True, return_progress=True))).content)

    assert chunks[-1] == "[DONE]"
    assert text_of(chunks) == "".join(WORDS)
    assert {json.loads(one)["model"] for one in chunks[:-1]} == {"llama3"}
    # It wasn't asked for, so programs that read the first choice of each chunk aren't surprised.
    assert all(json.loads(one)["choices"] for one in chunks[:-1])
    assert server.requests[0]["stream_options"] == {"include_usage": True}
    assert "return_progress" not in server.requests[0]
    record = await the_record()
    assert (record.finish, record.prompt_tokens, record.completion_tokens) == ("stop", 7, 4)
    assert 90 <= record.decode_ms <= record.total_ms


async def test_usage_is_shown_to_whoever_asks_for_it(server, served, program):
    chunks = payloads((await program.post(ask(stream=True, stream_options={"include_usage": True}))).content)

    last = json.loads(chunks[-2])
    assert (last["choices"], last["usage"]["completion_tokens"], last["model"]) == ([], 4, "llama3")
    assert (await the_record()).completion_tokens == 4


async def test_a_server_without_a_key_gets_none(program, served, server):
    server.key = ""
    await in_db(lambda: ExternalServer.objects.update(api_key_encrypted=b""))()

    assert (await program.post(ask())).status_code == 200
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("conduct", ["no-done", "no-usage"])
async def test_a_whole_stream_is_whole_without_its_last_words(server, served, program, conduct):
    server.conduct = conduct

    chunks = payloads((await program.post(ask(stream=True))).content)

    assert chunks[-1] == "[DONE]"
    assert text_of(chunks) == "".join(WORDS)
    assert (await the_record()).finish == "stop"


async def test_absurd_numbers_of_tokens_are_no_numbers(server, served, program):
    server.conduct = "odd-usage"

    assert payloads((await program.post(ask(stream=True))).content)[-1] == "[DONE]"
    record = await the_record()
    # For a prompt that nobody counted stands its estimate.
    assert (record.prompt_tokens, record.completion_tokens) == (4, 0)


@pytest.mark.parametrize("conduct", ["cut", "error", "garbage"])
async def test_a_stream_that_breaks_ends_with_an_error_object(server, served, program, conduct):
    server.conduct = conduct

    chunks = payloads((await program.post(ask(stream=True))).content)

    assert "".join(WORDS).startswith(text_of(chunks[:-1]))
    assert len(text_of(chunks[:-1])) < len("".join(WORDS))
    error = json.loads(chunks[-1])["error"]
    assert error["code"] == "upstream_lost"
    assert (await the_record()).finish == "error"


@pytest.mark.parametrize(
    ("conduct", "status", "code"),
    [
        ("400", 400, "invalid_request"),
        ("401", 502, "upstream_lost"),
        ("404", 502, "upstream_lost"),
        ("429", 503, "upstream_busy"),
        ("500", 502, "upstream_lost"),
        ("503", 503, "upstream_busy"),
        ("redirect", 502, "upstream_lost"),
        ("html", 502, "upstream_lost"),
        ("garbage", 502, "upstream_lost"),
        ("endless", 502, "upstream_lost"),
    ],
)
async def test_a_refusal_is_translated(server, served, program, conduct, status, code, monkeypatch):
    monkeypatch.setattr("gateway.upstream._MAX_WHOLE_BYTES", 2**20)
    server.conduct = conduct

    response = await program.post(ask())

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert server.elsewhere == 0


async def test_a_busy_server_says_when_to_come_back_and_is_not_asked_twice(server, served, program, asked):
    server.conduct = "429"

    response = await program.post(ask(stream=True))

    assert response["retry-after"] == "7"
    assert len(server.requests) == 1


async def test_a_refused_key_is_never_repeated(server, served, program):
    server.key = "sk-changed"

    response = await program.post(ask())

    assert "key" in response.json()["error"]["message"]
    assert KEY not in response.content.decode()
    assert "127.0.0.1" not in response.content.decode()


async def test_a_server_that_is_lost_is_looked_after(server, served, program, asked):
    await server.__aexit__()

    response = await program.post(ask(stream=True))

    assert response.status_code == 502
    assert set(asked) == {served.external_id}


async def test_portals_do_not_serve_each_other_in_a_circle(server, served, program, user):
    await program.post(ask())
    assert server.headers[0]["x-llamaproj-hops"] == "1"

    program.headers["x-llamaproj-hops"] = "5"
    response = await program.post(ask())

    assert (response.status_code, response.json()["error"]["code"]) == (508, "circular_route")
    assert len(server.requests) == 1
