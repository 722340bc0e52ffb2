"""Whatever a program sends, the door answers in OpenAI's words, and nobody but the program is to blame: never a 500.

Behind the door stands a real engine, so that what passes it is told by whoever really reads it.
"""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from channels.db import database_sync_to_async
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts import key_actions, version
from accounts.models import User
from gateway.models import Limit
from gateway.openai.requests import ENDPOINTS
from tests.gateway.engines import OwnEngine, running
from tests.gateway.program import CHAT, Connection, Program, Response, payloads
from tests.serving import gate_left_in_order, serve

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

in_db = database_sync_to_async
HI = [{"role": "user", "content": "hi"}]
# The least that each endpoint takes.
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["a", "b"]},
    "/tokenize": {"content": "hi"},
    "/apply-template": {"messages": HI},
}
NAMES = [
    "messages", "prompt", "input", "query", "documents", "content", "model", "stream", "stream_options",
    "n", "stop", "temperature", "top_p", "top_k", "min_p", "seed", "logprobs", "top_logprobs", "n_probs",
    "logit_bias", "tools", "tool_choice", "parallel_tool_calls", "functions", "response_format", "grammar",
    "json_schema", "presence_penalty", "frequency_penalty", "repeat_penalty", "repeat_last_n", "mirostat",
    "samplers", "dry_sequence_breakers", "chat_template_kwargs", "reasoning_format",
    "add_generation_prompt", "cache_prompt", "id_slot", "n_keep", "n_discard", "lora", "echo", "suffix",
    "instructions", "encoding_format", "dimensions", "top_n", "with_pieces", "add_special",
    "timings_per_token", "return_progress", "return_tokens", "t_max_predict_ms", "post_sampling_probs",
    "response_fields", "user", "metadata", "store",
]  # fmt: skip
LENGTHS = {
    CHAT: ["max_tokens", "max_completion_tokens", "n_predict"],
    "/v1/completions": ["max_tokens"],
    "/v1/responses": ["max_output_tokens"],
}
KINDS = {"invalid_request_error", "authentication_error", "permission_error", "rate_limit_error"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(NAMES), JSON, min_size=1, max_size=4)
QUIETLY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def engine(demo_model: Path) -> Iterator[OwnEngine]:
    with running(demo_model, "--ctx-size", "512", "--embeddings", "--pooling", "mean") as engine:
        yield engine
        # Nothing of it all has killed it.
        assert engine.process.poll() is None
        assert engine.is_healthy


@pytest.fixture
async def program(engine: OwnEngine) -> AsyncIterator[Program]:
    def make() -> str:
        serve(engine.base_url, engine.api_key)
        user = User.objects.create_user("ada")
        # What is absurd is also counted.
        Limit.objects.create(user=user, completion_tokens_per_minute=10**9, prompt_tokens_per_day=10**9)
        version.renew()
        return key_actions.create_api_key(user=user, name="test", by=None)[1]

    async with gate_left_in_order():
        yield Program(await in_db(make)())


def is_proper(response: Response, *, refused: bool = False) -> bool:
    """Whether it is an answer, or an error that tells the program what it did wrong."""
    if response.status_code == 200 and not refused:
        *_, last = payloads(response.content) or [response.content.decode()]
        return last == "[DONE]" or "error" not in json.loads(last) or is_error(json.loads(last))
    return 400 <= response.status_code < 500 and is_error(response.json())


def is_error(said: dict[str, Any]) -> bool:
    error = said["error"]
    return (
        set(error) == {"message", "type", "code", "param"}
        and bool(error["message"])
        and error["type"] in KINDS
        and isinstance(error["code"], str)
    )


@settings(QUIETLY, max_examples=100)
@given(path=st.sampled_from(sorted(ASKED)), more=FIELDS)
async def test_fields_of_any_kind_are_answered_or_refused_in_words(program, path, more):
    body = {"model": "fake", "max_tokens": 1} | ASKED[path] | more

    response = await program.send(json.dumps(body), path)

    assert is_proper(response), (response.status_code, response.content[:500], body)


@settings(QUIETLY, max_examples=60)
@given(path=st.sampled_from(sorted(ASKED)), data=st.binary(max_size=60), cut=st.integers(0, 80))
async def test_bytes_that_are_no_request_are_refused_in_words(program, path, data, cut):
    whole = json.dumps({"model": "fake", "max_tokens": 1} | ASKED[path]).encode()
    for body in (data, whole[: min(cut, len(whole) - 1)], whole[:cut] + b"\xc3\x28" + data + whole[cut:]):
        response = await program.send(body, path)

        assert is_proper(response, refused=True), (response.status_code, response.content[:500], body)


@pytest.mark.parametrize(
    "value",
    [0, -1, -(2**63), 2**31, 2**63, 2**64 - 1, 10**30, 1e300, 2.5, True, "many", [1], {}],
    ids=repr,
)
async def test_absurd_lengths_are_answered_or_refused_in_words(program, value):
    for path, names in LENGTHS.items():
        for name in names:
            response = await program.send(
                json.dumps({"model": "fake", "stop": ["e", "a", " "], "n": 1} | ASKED[path] | {name: value}),
                path,
            )

            assert is_proper(response), (response.status_code, response.content[:500], path, name)


async def test_what_is_deep_huge_or_odd_is_refused_in_words(program):
    said = json.dumps({"model": "fake"} | ASKED[CHAT])[:-1]
    for odd in (
        b"[" * 100_000,
        b'{"a":' * 100_000,
        f'{said}, "x": {"[" * 300}{"]" * 300}}}'.encode(),
        f'{said}, "x": "\\ud800"}}'.encode(),
        f'{said}, "x": NaN}}'.encode(),
        f'{said}, "x": 1{"0" * 5000}}}x'.encode(),
        b"\xef\xbb\xbf" + f"{said}}}".encode(),
        f"{said}}}".encode("utf-16"),
        f"{said}}} {said}}}".encode(),
        b'{"model": "fake", "messages": ' + b'[{"role": "user", "content": "x"},' * 1000,
        b'{"model": "\\u0000", "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "' + b"x" * 1_000_000 + b'", "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "fake", "messages": [{"role": "user", "content": "' + b"x " * 4_000_000 + b'"}]}',
        b"x" * (16 * 1024 * 1024 + 1),
    ):
        response = await program.send(odd)

        assert is_proper(response, refused=True), (response.status_code, response.content[:300], odd[:80])
        assert len(response.content) < 2000


@settings(QUIETLY, max_examples=60)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"]),
    path=st.sampled_from([*ENDPOINTS, "/v1", "/v1/models", "/v1/models/", "/v1//models"])
    | st.text(max_size=12).map("/v1/models/{}".format)
    | st.text(max_size=12).map("/v1/{}".format),
    header=st.sampled_from(
        ["authorization", "x-request-id", "content-length", "origin", "content-type", "x_llamaproj_hops"]
    ),
    value=st.text(st.characters(max_codepoint=255), max_size=20),
)
async def test_any_method_path_and_header_gets_an_answer_in_words(program, method, path, header, value):
    headers = program.headers | {header.replace("-", "_"): value}

    response = await Connection(method, path, **headers).response()

    listed = response.status_code == 200 and "error" not in response.json()
    assert listed or is_proper(response, refused=True), (response.status_code, response.content[:300])
