"""What pages show of a message beside its text."""

import pytest

from chat.models import Message
from chat.relay import Delta
from chat.rendering import AnswerFeed
from chat.templatetags.measures import seconds, stages


def test_an_answer_that_ends_without_new_text_has_no_open_block_left():
    feed = AnswerFeed("g")
    feed.take(Delta("g", 0, "Once\n\nupon a", "writing", "", False))
    assert (len(feed.blocks), feed.open) == (1, "<p>upon a</p>\n")

    feed.take(Delta("g", 12, "", "stopped", "", True))

    assert len(feed.blocks) == 2
    assert feed.open == ""


@pytest.mark.parametrize(
    ("ms", "words"),
    [(None, ""), (0, "0 ms"), (412.4, "412 ms"), (999.6, "1.0 s"), (5900, "5.9 s"), (125_000, "2 min 5 s")],
)
def test_durations_read_as_a_person_says_them(ms, words):
    assert seconds(ms) == words


def test_the_waterfall_lays_stages_end_to_end_and_leaves_out_those_without_time():
    message = Message(timings={"queue_ms": 100, "prefill_ms": 400, "decode_ms": 500, "total_ms": 1000})

    bars = [(stage.name, stage.x, stage.width) for stage in stages(message)]

    assert bars == [("waiting", 0, 100), ("reading", 100, 400), ("writing", 500, 500)]
    assert stages(Message(timings={})) == []
