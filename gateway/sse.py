"""Server-sent events as llama-server sends them, split from raw bytes.

Events end with an empty line; lines end with LF or CRLF and nothing else: Unicode line separators occur inside JSON
strings. Comment lines are pings. Source: WHATWG HTML, "Server-sent events", and OpenAI's use of it.
"""

from collections.abc import Iterator

DONE = b"[DONE]"
# One event holds one token; a line this long is garbage, not a token.
_MAX_LINE_BYTES = 4 * 1024 * 1024


class LineTooLong(ValueError):
    """The stream has a line longer than any event."""


class EventSplitter:
    """Feed it bytes as they come; it yields the `data` payload of every complete event."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that `data` completes. Raises `LineTooLong`."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_LINE_BYTES:
            raise LineTooLong
        for line in lines:
            # llama-server writes each payload on one line, so the empty line between events carries no information.
            if line.startswith(b"data:"):
                yield line[5:].strip()


def event(payload: bytes) -> bytes:
    """The bytes of one event."""
    return b"data: " + payload + b"\n\n"
