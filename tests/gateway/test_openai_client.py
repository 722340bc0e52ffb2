"""Programs as people have them, unchanged, against a running portal with the real engine: OpenAI's clients in Python
and JavaScript, LangChain, and the `llm` tool."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI

from tests.portal import Portal

pytestmark = [pytest.mark.portal, pytest.mark.slow]

MODEL = "smollm2-135m-instruct"
HELLO = [{"role": "user", "content": "Say hello."}]
NPM_CLIENT = "openai@6.9.1"


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
    known = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.choices[0].finish_reason)
    sql = (
        "SELECT prompt_tokens, completion_tokens, finish FROM gateway_usagerecord"
        " WHERE door = 'api' ORDER BY at DESC LIMIT 1"
    )
    # Records are written in bulk, within seconds.
    until = time.monotonic() + 20
    while portal.query(sql) != [known]:
        assert time.monotonic() < until, portal.query(sql)
        time.sleep(0.2)


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
    printed = portal.manage("chat", MODEL, "Say hello.", "--max-tokens", "12", timeout=60)

    assert 3 < len(printed.strip()) < 200


def test_other_endpoints_answer_the_same_client(client: OpenAI):
    completion = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=6)
    response = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16)
    events = list(client.responses.create(model=MODEL, input="Hello", max_output_tokens=16, stream=True))

    assert completion.choices[0].text
    assert response.output_text
    assert events[-1].type == "response.completed"
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="a")
    assert refused.value.code == "not_supported"


async def test_the_asynchronous_client_streams_tools_and_schemas(portal: Portal, key: str):
    schema = {
        "name": "a",
        "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    }
    async with AsyncOpenAI(base_url=f"{portal.base_url}/v1", api_key=key, max_retries=0) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=6, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            max_tokens=40,
            response_format={"type": "json_schema", "json_schema": schema},
        )

    assert text
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


def test_langchain_asks_and_streams(portal: Portal, key: str):
    model = ChatOpenAI(
        model=MODEL, base_url=f"{portal.base_url}/v1", api_key=key, max_tokens=8, max_retries=0
    )

    assert model.invoke("Say hello.").content
    assert "".join(str(chunk.content) for chunk in model.stream("Say hello."))


def test_the_llm_tool_asks(portal: Portal, key: str, tmp_path: Path):
    known = [
        {"model_id": "ours", "model_name": MODEL, "api_base": f"{portal.base_url}/v1", "api_key_name": "ours"}
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(known))
    (tmp_path / "keys.json").write_text(json.dumps({"ours": key}))

    printed = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "ours", "-o", "max_tokens", "8", "Say hello."],
        # None of its plugins: one brings a model and wants a library for it that isn't here.
        env={**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.strip()


def test_the_client_of_npm_asks_everything(portal: Portal, key: str, tmp_path: Path):
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("no npm on this machine: OpenAI's JavaScript client was not tried")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", NPM_CLIENT]
    got = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    if got.returncode:
        pytest.skip(f"npm can't install {NPM_CLIENT} here: OpenAI's JavaScript client was not tried")
    shutil.copy(Path(__file__).with_name("openai_client.mjs"), tmp_path)

    printed = subprocess.run(
        ["node", "openai_client.mjs", f"{portal.base_url}/v1", key, MODEL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert printed.returncode == 0, printed.stderr
    seen = json.loads(printed.stdout)
    assert seen["models"] == [MODEL]
    assert seen["refusal"] == "NotFoundError model_not_found"
    assert 0 < seen["tokens"] <= 8
    assert all(seen[name] for name in ("whole", "text", "completion", "response"))
