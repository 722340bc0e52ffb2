"""Server-sent events from raw bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import sse


@given(
    st.lists(st.text(min_size=1).map(lambda text: text.replace("\n", " ").replace("\r", " ").strip() or "x")),
    st.data(),
)
def test_payloads_do_not_depend_on_how_the_bytes_were_cut(payloads, data):
    stream = b"".join(sse.event(payload.encode()) for payload in payloads)
    splitter = sse.EventSplitter()
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]

    assert [one.decode() for one in found] == payloads


def test_unicode_line_separators_stay_inside_a_payload():
    payload = '{"content":"a\u2028b\u0085c"}'.encode()

    assert list(sse.EventSplitter().feed(sse.event(payload))) == [payload]


def test_pings_and_other_fields_are_ignored():
    assert list(sse.EventSplitter().feed(b": ping\r\nevent: x\r\ndata: {}\r\n\r\n")) == [b"{}"]


def test_a_line_without_end_is_refused():
    splitter = sse.EventSplitter()

    with pytest.raises(sse.LineTooLong):
        list(splitter.feed(b"x" * 5_000_000))
