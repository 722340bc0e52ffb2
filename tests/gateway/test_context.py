"""The longest prompt and answer somebody may have, where that is less than the model's own: with the real engine."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from channels.db import database_sync_to_async

from accounts import key_actions, version
from accounts.models import Team, User
from gateway.models import Limit
from models_admin.models import ServedModel
from tests.gateway.engines import OwnEngine, running
from tests.gateway.program import CHAT, Program, payloads, text_of
from tests.serving import gate_left_in_order, serve

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

in_db = database_sync_to_async
MOST = 50
LONG = "word " * 80
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Count to a million."}]},
    "/v1/completions": {"prompt": "One, two, three,"},
    "/v1/responses": {"input": "Count to a million."},
}
ENDLESS = {"model": "fake", "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(demo_model: Path) -> Iterator[OwnEngine]:
    with running(demo_model, "--ctx-size", "1024") as engine:
        yield engine


@pytest.fixture
async def user(engine: OwnEngine) -> AsyncIterator[User]:
    def make() -> User:
        serve(engine.base_url, engine.api_key)
        return User.objects.create_user("ada")

    async with gate_left_in_order():
        yield await in_db(make)()


@in_db
def limit(**fields: Any) -> None:
    Limit.objects.create(**fields)
    version.renew()


@pytest.fixture
async def program(user: User) -> Program:
    return Program((await in_db(key_actions.create_api_key)(user=user, name="test", by=None))[1])


def total_of(answer: dict[str, Any]) -> int:
    usage = answer["usage"]
    return sum(
        usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        *((path, {}) for path in ASKED),
        *((CHAT, said) for said in ({"max_tokens": 1000}, {"max_tokens": -1}, {"n_predict": 1000.0})),
        (CHAT, {"max_completion_tokens": 5, "n_predict": 1000}),
        (CHAT, {"max_output_tokens": 5}),
        ("/v1/completions", {"max_tokens": 5, "n_predict": -1}),
        ("/v1/responses", {"max_tokens": 1000}),
    ],
    ids=repr,
)
async def test_prompt_and_answer_fit_together_whatever_was_asked_for(program, user, path, said):
    await limit(user=user, context_tokens=MOST)

    response = await program.post(ENDLESS | ASKED[path] | said, path)

    assert response.status_code == 200, response.content
    # To the last token.
    assert total_of(response.json()) == MOST


async def test_an_answer_that_is_shorter_anyway_stays_so(program, user):
    await limit(user=user, context_tokens=MOST)

    answer = (await program.post(ENDLESS | ASKED[CHAT] | {"max_tokens": 3})).json()

    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_too_long_is_refused_with_both_numbers(program, user, path, stream):
    await limit(user=user, context_tokens=MOST)
    long = {
        CHAT: {"messages": [{"role": "user", "content": LONG}]},
        "/v1/completions": {"prompt": LONG},
        "/v1/responses": {"input": LONG},
    }

    response = await program.post({"model": "fake", "stream": stream} | long[path], path)

    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert f"at most {MOST}" in error["message"]
    assert "tokens long" in error["message"]


async def test_the_least_of_several_limits_holds_and_a_team_of_others_has_none(program, user):
    await limit(user=user, context_tokens=MOST + 40)
    await limit(served=await ServedModel.objects.aget(), context_tokens=MOST)
    await limit(team=await in_db(Team.objects.create)(name="others"), context_tokens=10)

    response = await program.stream(
        ENDLESS | ASKED[CHAT] | {"stream_options": {"include_usage": True}}
    ).response()

    assert f'"total_tokens":{MOST}' in payloads(response.content)[-2]
    assert text_of(response.content)


async def test_a_changed_limit_holds_from_the_next_request(program, user):
    assert (await program.post(ENDLESS | ASKED[CHAT] | {"max_tokens": 30})).status_code == 200
    await limit(user=user, context_tokens=MOST)

    answer = (await program.post(ENDLESS | ASKED[CHAT] | {"max_tokens": 30})).json()

    assert total_of(answer) == MOST


async def test_prompts_in_a_list_are_counted_too(program, user):
    await limit(user=user, context_tokens=MOST)

    for prompt in ([LONG, LONG], list(range(100, 200))):
        response = await program.post({"model": "fake", "prompt": prompt, "max_tokens": 2}, "/v1/completions")

        assert response.status_code == 400, response.content
        assert response.json()["error"]["code"] == "context_length_exceeded"
    response = await program.post({"model": "fake", "prompt": [1, 2, 3], "max_tokens": 2}, "/v1/completions")
    assert response.status_code == 200


async def test_more_than_one_length_promises_the_longest(program, user):
    """What is reserved is what the engine may write: by whichever field."""
    await limit(user=user, completion_tokens_per_minute=50)

    for said in (
        {"max_completion_tokens": 5, "n_predict": 100},
        {"max_tokens": 5, "max_output_tokens": 100.0},
    ):
        response = await program.post(ENDLESS | ASKED[CHAT] | said)

        assert response.status_code == 429, response.content
        assert "lower max_tokens" in response.json()["error"]["message"]
