"""The door's answers are llama-server's own, and docs/openai-api.md says where they aren't."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from channels.db import database_sync_to_async

from accounts import key_actions
from accounts.models import User
from tests.gateway import compat
from tests.gateway.engines import OwnEngine, running
from tests.gateway.program import Program
from tests.serving import gate_left_in_order, serve

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

in_db = database_sync_to_async
LAUNCHED = {
    "all": ("--embeddings", "--pooling", "mean"),
    "rank": ("--reranking",),
    "tools": ("--jinja", "--chat-template-file", str(compat.TOOLS_TEMPLATE)),
}


@pytest.fixture(scope="module")
def engines(demo_model: Path) -> Iterator[dict[str, OwnEngine]]:
    with ExitStack() as stack:
        yield {
            slug: stack.enter_context(running(demo_model, "--ctx-size", "2048", "--alias", slug, *flags))
            for slug, flags in LAUNCHED.items()
        }


@pytest.fixture
async def program(engines: dict[str, OwnEngine]) -> AsyncIterator[Program]:
    def make() -> str:
        for slug, engine in engines.items():
            serve(engine.base_url, engine.api_key, slug=slug)
        return key_actions.create_api_key(user=User.objects.create_user("ada"), name="test", by=None)[1]

    async with gate_left_in_order():
        yield Program(await in_db(make)())


async def test_every_field_is_llama_servers_own_or_the_document_says_otherwise(engines, program):
    found = compat.Comparison()
    async with httpx.AsyncClient(timeout=60) as client:

        async def direct(request: compat.Request) -> httpx.Response:
            engine = engines[request.slug]
            headers = {"authorization": f"Bearer {engine.api_key}"}
            return await client.post(engine.base_url + request.path, json=request.body, headers=headers)

        for request in compat.ANSWERED:
            theirs = await direct(request)
            ours = await program.post({"model": request.slug} | request.body, request.path)
            assert (theirs.status_code, ours.status_code) == (200, 200), (request, theirs.text, ours.content)
            assert ours["content-type"].partition(";")[0] == theirs.headers["content-type"].partition(";")[0]
            found.add(request, theirs.content, ours.content)
        for what, request in compat.REFUSED.items():
            theirs = await direct(request)
            ours = await program.post({"model": request.slug} | request.body, request.path)
            assert theirs.status_code >= 400, (what, theirs.text)
            assert 400 <= ours.status_code < 500, (what, ours.content)
            found.add_refusal(what, (theirs.status_code, theirs.content), (ours.status_code, ours.content))

    assert found.differences == []
    if os.environ.get(compat.WRITE):
        compat.write(found.table())
    assert compat.written() == found.table(), "docs/openai-api.md is old: python -m tests.gateway.compat"
