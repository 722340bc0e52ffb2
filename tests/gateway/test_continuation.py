"""What is kept of a stream so that another replica can go on with it, without a server."""

import json
import random

import pytest

from gateway import sse
from gateway.continuation import Continuation

NASTY = (
    "a",
    " word",
    'quo"te',
    "back\\slash",
    "\\",
    '\\"',
    "line\nbreak",
    "data: {}",
    '"finish_reason":null',
    '"delta":{"content":"x"}',
    "ü 漢 🦙",
    "\u2028",
    "\x00",
    "{}[]",
)


def chunk(text: str | None, **more: object) -> bytes:
    """As llama-server writes it: no spaces, the choices first."""
    choice = {"finish_reason": None, "index": 0, "delta": {} if text is None else {"content": text}} | more
    found = {
        "choices": [choice],
        "created": 1,
        "id": "chatcmpl-1",
        "model": "m",
        "object": "chat.completion.chunk",
    }
    return sse.event(json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode())


def said(so_far: Continuation) -> str:
    request = so_far.request()
    assert request is not None
    return str(request["messages"][-1]["content"])


@pytest.mark.parametrize("seed", range(5))
def test_every_text_is_kept_as_it_was_said(seed):
    chance = random.Random(seed)
    so_far = Continuation({"messages": [{"role": "user", "content": "hi"}]})
    so_far.see(chunk(None, delta={"role": "assistant", "content": None}))
    texts = [chance.choice(NASTY) for _ in range(400)]
    for text in texts:
        so_far.see(chunk(text))

    assert said(so_far) == "".join(texts)
    assert so_far.tokens == len(texts)
    assert not so_far.is_finished


def test_plain_texts_are_read_together_and_their_end_is_seen():
    so_far = Continuation({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 150})
    so_far.see(chunk(None, delta={"role": "assistant", "content": None}))
    for _ in range(100):
        so_far.see(chunk("tick "))
    so_far.see(chunk(None, finish_reason="stop"))

    request = so_far.request()

    assert request is not None
    assert request["messages"][-1] == {"role": "assistant", "content": "tick " * 100}
    assert request["max_tokens"] == 50
    assert so_far.is_finished


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{"index": 0}]},
        {"reasoning_content": "hm"},
        {"content": "x", "reasoning_content": "hm"},
    ],
)
def test_what_is_more_than_text_is_not_gone_on_with(delta):
    so_far = Continuation({"messages": [{"role": "user", "content": "hi"}]})
    for _ in range(100):
        so_far.see(chunk("tick "))
    so_far.see(chunk(None, delta=delta))

    assert so_far.request() is None
