"""What llama-servers say, from scripted answers, hostile ones, and the real engine."""

import asyncio
import threading
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.engine_metrics import Answer, EngineWatch, Fetcher, Target, parse_metrics, parse_slots
from tests.fake_engine import FakeEngine

ONE = Target("one", "http://127.0.0.1:9", "key")


class Script:
    """Answers of a server, one after the other; the clock is the answer's time."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, target):
        return self.answers.pop(0)


def answer(at, predicted, *decoded, prompt=0.0, **slot):
    slots = [{"n_ctx": 100, "is_processing": False}] + [
        {"n_ctx": 100, "is_processing": True, "n_prompt_tokens": 7, "next_token": [{"n_decoded": d}], **slot}
        for d in decoded
    ]
    metrics = {
        "tokens_predicted_total": predicted,
        "prompt_tokens_total": prompt,
        "requests_processing": len(decoded),
    }
    return Answer(at, metrics, slots)


def readings(*answers):
    """What a watch makes of the answers, each asked for at its own time."""
    now = [0.0]
    watch = EngineWatch(fetch=Script(*answers), clock=lambda: now[0])
    found = []
    for each in answers:
        now[0] = each.at
        found.append(watch.collect(watch.ask([ONE])).get("one"))
    return found


def test_tokens_are_counted_while_they_are_written():
    first, second, third = readings(answer(0, 50, 10), answer(2, 50, 70), answer(4, 150))
    assert first.generated_tokens_s is None
    assert second.generated_tokens_s == pytest.approx(30)
    assert third.generated_tokens_s == pytest.approx(15)
    assert (second.slots, second.slots_busy) == (2, 1)
    assert (second.context_used_tokens, second.context_tokens) == (7, 200)
    assert (second.requests_processing, third.requests_processing) == (1, 0)


def test_an_answer_that_ends_between_the_two_questions_is_counted_once():
    # Its 100 tokens are no longer in a slot and not yet in the counter.
    _, missed, found = readings(answer(0, 0, 80), answer(2, 0), answer(4, 100))
    assert missed.generated_tokens_s == 0
    assert found.generated_tokens_s == pytest.approx(10)


def test_a_prompt_is_counted_while_it_is_read():
    _, reading, done = readings(
        answer(0, 0), answer(1, 0, 0, n_prompt_tokens_processed=512), answer(2, 0, 3, prompt=700)
    )
    assert reading.prompt_tokens_s == pytest.approx(512)
    assert done.prompt_tokens_s == pytest.approx(188)


def test_a_restarted_server_makes_no_negative_rate():
    _, after, later = readings(answer(0, 500), answer(2, 10), answer(4, 30))
    assert after.generated_tokens_s is None
    assert later.generated_tokens_s == pytest.approx(10)


def test_a_server_without_metrics_still_shows_its_slots():
    (only,) = readings(Answer(0, None, [{"n_ctx": 9, "is_processing": False}]))
    assert (only.slots, only.generated_tokens_s, only.metrics) == (1, None, {})


def test_a_server_that_says_nothing_is_unknown():
    assert readings(Answer(0, None, None)) == [None]


def test_a_hung_server_delays_nobody_and_is_asked_once():
    release, calls = threading.Event(), []
    other = Target("two", "http://127.0.0.1:9", "")

    def fetch(target):
        calls.append(target.key)
        if target.key == "one":
            release.wait(10)
        return answer(time.monotonic(), 1)

    watch = EngineWatch(fetch=fetch, patience_s=0.05)
    assert set(watch.collect(watch.ask([ONE, other]))) == {"two"}
    # It is still being asked: nobody waits for it any more.
    asked = watch.ask([ONE, other])
    assert len(asked) == 1
    assert set(watch.collect(asked)) == {"two"}
    assert calls.count("one") == 1
    release.set()


def test_what_a_silent_server_said_last_grows_old():
    now = [0.0]
    answers = [answer(0, 1), Answer(5, None, None), Answer(20, None, None)]
    watch = EngineWatch(fetch=Script(*answers), clock=lambda: now[0])
    found = []
    for at in (0.0, 5.0, 20.0):
        now[0] = at
        found.append("one" in watch.collect(watch.ask([ONE])))
    assert found == [True, True, False]


def test_a_server_that_is_gone_is_forgotten():
    watch = EngineWatch(fetch=Script(answer(0, 1)), clock=lambda: 0.0)
    assert watch.collect(watch.ask([ONE]))
    assert watch.collect(watch.ask([])) == {}


def test_an_answer_that_breaks_the_reader_spoils_no_sample():
    def fetch(target):
        raise ZeroDivisionError

    watch = EngineWatch(fetch=fetch)
    assert watch.collect(watch.ask([ONE])) == {}


def test_metrics_keep_their_names():
    text = "# TYPE llamacpp:n_tokens_max counter\nllamacpp:n_tokens_max 339\nllamacpp:bad NaN\nother 1\n"
    assert parse_metrics(text) == {"n_tokens_max": 339.0}


@settings(max_examples=150, deadline=None)
@given(st.text(), st.text(alphabet='llamacpp:{}",=# \n0123456789eE+-.NaInf_\\'))
def test_no_text_breaks_the_parsers(anything, alike):
    for text in (anything, alike, f"llamacpp:{alike}"):
        assert parse_metrics(text) is None or isinstance(parse_metrics(text), dict)
        assert parse_slots(text) is None or isinstance(parse_slots(text), list)
    assert parse_slots("[" * 100_000) is None


async def test_a_server_is_asked_with_its_key():
    async with FakeEngine(slots=2) as engine:
        known = await asyncio.to_thread(Fetcher(), Target("one", engine.base_url, engine.api_key))
        refused = await asyncio.to_thread(Fetcher(), Target("one", engine.base_url, "wrong"))
    assert known.metrics["tokens_predicted_total"] == 0
    assert len(known.slots) == 2
    assert (refused.metrics, refused.slots) == (None, None)


def test_nobody_at_the_port_is_no_answer():
    assert Fetcher()(ONE).metrics is None


@pytest.mark.slow
def test_rates_add_up_to_the_real_engine_s_own_count(engine):
    target = Target("real", engine.base_url, engine.api_key)
    fetcher, answers = Fetcher(), []

    def fetch(target):
        answers.append(fetcher(target))
        return answers[-1]

    watch = EngineWatch(fetch=fetch)
    watch.collect(watch.ask([target]))
    request = {
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "max_tokens": 80,
        "ignore_eos": True,
    }
    chat = threading.Thread(
        target=httpx.post,
        args=(f"{engine.base_url}/v1/chat/completions",),
        kwargs={"headers": {"authorization": f"Bearer {engine.api_key}"}, "json": request, "timeout": 120},
    )
    chat.start()
    seen, while_writing, known = 0.0, 0, answers[0]
    running = True
    while running:
        running = chat.is_alive()
        chat.join(0.1)
        reading = watch.collect(watch.ask([target]))["real"]
        if answers[-1].at > known.at:
            seen += reading.generated_tokens_s * (answers[-1].at - known.at)
            while_writing += bool(reading.slots_busy and reading.generated_tokens_s)
            known = answers[-1]
    counted = known.metrics["tokens_predicted_total"] - answers[0].metrics["tokens_predicted_total"]
    assert counted == 80
    assert seen == pytest.approx(counted, rel=0.05)
    assert while_writing >= 2
