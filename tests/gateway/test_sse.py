"""Server-sent events from raw bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import sse


def payloads_of(blocks: sse.EventBlocks, *pieces: bytes) -> list[bytes]:
    return [payload for piece in pieces for payload in sse.payloads(blocks.feed(piece))]


@given(
    st.lists(st.text(min_size=1).map(lambda text: text.replace("\n", " ").replace("\r", " ").strip() or "x")),
    st.data(),
)
def test_events_do_not_depend_on_how_the_bytes_were_cut(payloads, data):
    stream = whole = b"".join(sse.event(payload.encode()) for payload in payloads)
    blocks = sse.EventBlocks()
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found.append(blocks.feed(stream[:size]))
        stream = stream[size:]

    assert b"".join(found) == whole
    assert all(block.endswith(b"\n\n") for block in found if block)
    assert [one.decode() for block in found for one in sse.payloads(block)] == payloads


def test_unicode_line_separators_stay_inside_a_payload():
    payload = '{"content":"a\u2028b\u0085c"}'.encode()

    assert payloads_of(sse.EventBlocks(), sse.event(payload)) == [payload]


def test_pings_and_other_fields_carry_nothing():
    assert payloads_of(sse.EventBlocks(b"\n"), b": ping\r\nevent: x\r\ndata: {}\r\n\r\n") == [b"{}"]


def test_an_event_without_end_is_refused():
    blocks = sse.EventBlocks()

    with pytest.raises(sse.LineTooLong):
        blocks.feed(b"x" * 5_000_000)


def test_an_end_is_told_from_a_text_about_ends():
    told = sse.event(b'{"content":"data: [DONE]"}')

    assert not sse.begins_with(told, sse.DONE_EVENT)
    assert sse.begins_with(told + sse.DONE_EVENT, sse.DONE_EVENT)


def test_a_comment_is_one_line_whatever_it_says():
    assert sse.comment("loading\n\ndata: {}") == b": loading  data: {}\n\n"
