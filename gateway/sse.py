"""Server-sent events as llama-server sends them, cut from raw bytes.

Events end with an empty line; lines end with LF or CRLF and nothing else: Unicode line separators occur inside JSON
strings. Comment lines are pings. Source: WHATWG HTML, "Server-sent events", and OpenAI's use of it.

A JSON text has no raw line break, so what begins after one is the stream's own word: `\\n\\ndata: [DONE]` is an end,
the same letters inside an answer are not.
"""

from collections.abc import Iterator

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"
# One event holds one token; one this long is garbage, not a token.
_MOST_BYTES = 4 * 1024 * 1024


class LineTooLong(ValueError):
    """The stream has a line longer than any event."""


class EventBlocks:
    """Feed it bytes as they come; it gives them back up to the end of the last complete event, otherwise untouched.

    `end` is how an event ends; a server that may write CRLF is cut into lines.
    """

    def __init__(self, end: bytes = b"\n\n") -> None:
        self._end = end
        self._rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """The events that `data` completes, as they are on the wire; empty for none. Raises `LineTooLong`."""
        if not self._rest and data.endswith(self._end):
            return data
        searched = max(0, len(self._rest) - 1)
        self._rest += data
        end = self._rest.rfind(self._end, searched) + len(self._end)
        if end < len(self._end):
            if len(self._rest) > _MOST_BYTES:
                raise LineTooLong
            return b""
        block = bytes(self._rest[:end])
        del self._rest[:end]
        return block


def begins_with(block: bytes, start: bytes) -> bool:
    """Whether one of the block's events begins so."""
    return block.startswith(start) or b"\n\n" + start in block


def payloads(block: bytes) -> Iterator[bytes]:
    """What the events of a block carry."""
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            yield line[5:].strip()


def event(payload: bytes) -> bytes:
    """The bytes of one event."""
    return b"data: " + payload + b"\n\n"


def comment(text: str) -> bytes:
    """The bytes of a line that programs pass over and people may read."""
    return b": " + text.replace("\n", " ").replace("\r", " ").encode() + b"\n\n"
