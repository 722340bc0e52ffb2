"""OpenAI's own Python client against a running portal with the real engine."""

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.portal import Portal

pytestmark = [pytest.mark.portal, pytest.mark.slow]

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def key(portal: Portal) -> str:
    return portal.manage("apikey", "create", "--user", portal.username, "--name", "tests").splitlines()[-1]


@pytest.fixture
def client(portal: Portal, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{portal.base_url}/v1", api_key=key, max_retries=0) as client:
        yield client


def test_models_are_listed(client: OpenAI):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "llamaproj"


def test_an_answer_as_a_whole(client: OpenAI, portal: Portal):
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=12
    )

    assert answer.choices[0].message.content
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 12
    ((prompt, completion, finish),) = portal.query(
        "SELECT prompt_tokens, completion_tokens, finish FROM gateway_usagerecord"
        " WHERE door = 'api' ORDER BY at DESC LIMIT 1"
    )
    assert (prompt, completion) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert finish == answer.choices[0].finish_reason


def test_an_answer_as_a_stream(client: OpenAI):
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Count to ten."}],
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )

    chunks = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert len(chunks) > 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 20


def test_errors_are_the_clients_own(client: OpenAI, portal: Portal):
    hello = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.NotFoundError, match="no model 'nothing'"):
        client.chat.completions.create(model="nothing", messages=hello)
    with pytest.raises(openai.BadRequestError, match="at most 4,096") as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 6000}])
    assert refused.value.code == "context_length_exceeded"
    with (
        OpenAI(base_url=f"{portal.base_url}/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_the_terminal_streams_an_answer(portal: Portal):
    printed = portal.manage("chat", MODEL, "Say hello.", timeout=120)

    assert len(printed.strip()) > 3
