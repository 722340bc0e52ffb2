"""An answer that goes on elsewhere is one answer to whoever reads it."""

import json

import orjson
import pytest

from gateway import sse
from gateway.continuation import Continuation, is_possible

HI = [{"role": "user", "content": "hi"}]
ASKED = {"messages": HI, "stream": True, "max_tokens": 10}


def chunk(id_: str, delta: dict[str, object], reason: str | None = None, **more: object) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return sse.event(orjson.dumps({"id": id_, "created": len(id_), "model": "m", "choices": choices} | more))


def begun(body: dict[str, object] = ASKED) -> Continuation:
    so_far = Continuation(body)
    so_far.see(chunk("first", {"role": "assistant", "content": None}))
    so_far.see(chunk("first", {"content": "one "}) + chunk("first", {"content": "two "}))
    return so_far


def test_the_text_so_far_is_the_beginning_of_the_next_request():
    request = begun().request()

    assert request is not None
    assert request["messages"] == [*HI, {"role": "assistant", "content": "one two "}]
    assert request["max_tokens"] == 8


def test_a_beginning_that_the_client_gave_comes_first():
    given = [*HI, {"role": "assistant", "content": "zero "}]

    request = begun(ASKED | {"messages": given}).request()

    assert request is not None
    assert request["messages"] == [*HI, {"role": "assistant", "content": "zero one two "}]


def test_what_comes_looks_like_the_rest_of_the_same_answer():
    so_far = begun()
    so_far.request()
    usage = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
    rest = (
        chunk("second!", {"role": "assistant", "content": None})
        + chunk("second!", {"content": "three"})
        + chunk("second!", {}, "stop")
        + sse.event(orjson.dumps({"id": "second!", "choices": [], "usage": usage}))
        + sse.DONE_EVENT
    )

    *chunks, done = list(sse.payloads(so_far.rewrite(rest)))

    assert done == sse.DONE
    text, end, sums = (json.loads(one) for one in chunks)
    assert {(one["id"], one["created"]) for one in (text, end, sums)} == {("first", 5)}
    assert text["choices"][0]["delta"] == {"content": "three"}
    assert end["choices"][0]["finish_reason"] == "stop"
    assert sums["usage"] == {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}


def test_an_answer_that_has_its_length_ends_there():
    so_far = begun(ASKED | {"max_tokens": 2})
    so_far.request()

    assert so_far.is_full
    end, done = sse.payloads(so_far.last_events())
    assert json.loads(end)["choices"][0]["finish_reason"] == "length"
    assert done == sse.DONE


def test_an_answer_that_has_its_length_ends_with_its_sums_where_they_were_asked_for():
    so_far = begun(ASKED | {"max_tokens": 2, "stream_options": {"include_usage": True}})
    so_far.request()

    assert so_far.lacks_usage
    end, sums, done = sse.payloads(so_far.last_events(12, 4))
    assert json.loads(end)["choices"][0]["finish_reason"] == "length"
    assert json.loads(sums)["choices"] == []
    assert json.loads(sums)["id"] == "first"
    assert json.loads(sums)["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 2,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert done == sse.DONE


def test_an_answer_that_has_said_its_end_gets_the_sums_that_it_lacks_and_no_others():
    so_far = begun(ASKED | {"stream_options": {"include_usage": True}})
    so_far.see(chunk("first", {}, "stop"))
    so_far.request()

    assert so_far.is_finished
    sums, _ = sse.payloads(so_far.last_events(12))
    assert json.loads(sums)["usage"]["total_tokens"] == 14
    so_far.see(sse.event(sums))
    so_far.request()
    assert list(sse.payloads(so_far.last_events(12))) == [sse.DONE]


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"n": [1]},
        {"tools": [{}]},
        {"logprobs": True},
        {"grammar": "root ::= x"},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_more_than_text_does_not_go_on(more):
    assert is_possible(ASKED | {"n": 1, "response_format": {"type": "text"}})
    assert not is_possible(ASKED | more)


def test_thoughts_do_not_go_on():
    so_far = begun()
    so_far.see(chunk("first", {"reasoning_content": "hm"}))

    assert so_far.request() is None


def test_replicas_that_die_without_a_word_are_not_asked_for_ever():
    so_far = begun()

    assert [so_far.request() is not None for _ in range(5)] == [True, True, True, True, False]


def test_of_a_very_long_answer_not_everything_is_kept():
    so_far = begun()
    for _ in range(40):
        so_far.see(chunk("first", {"content": "x" * 10_000}))

    assert so_far.request() is None
    assert so_far._texts == []
