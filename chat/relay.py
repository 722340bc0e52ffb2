"""How text travels from a generator to every watching web process, durably.

This is what both ends agree on; `relay_writer` is the generator's end, `relay_hub` the web process's. See
docs/architecture.md, "The life of a token".

Offsets count code points from the beginning of an answer's text. Valkey holds, for a generation G:

    gen:{G}           a stream; each entry's id is `<end offset>-0`, so Valkey itself refuses a repeat
    gen:{G}:watchers  the set of web processes that have sockets on G
    relay:watch       pub/sub: a web process says that it watches a generation
    relay:web:{W}     pub/sub: a list of deltas for web process W, one publication a tick

A delta is the JSON list `[generation, offset, text, status, progress, final]`.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from redis.asyncio import Redis

WATCH_CHANNEL = "relay:watch"
UNFINISHED_TTL_S = 24 * 3600
RETRY_S = 0.5


def stream_key(generation: str) -> str:
    """The stream that holds the generation's recent text."""
    return f"gen:{generation}"


def watchers_key(generation: str) -> str:
    """The set of web processes that watch the generation."""
    return f"gen:{generation}:watchers"


def web_channel(web: str) -> str:
    """The channel on which a web process hears what it watches."""
    return f"relay:web:{web}"


class Delta(NamedTuple):
    """New text of a generation, and how it stands."""

    generation: str
    offset: int
    text: str
    status: str
    progress: str
    final: bool


def assemble(checkpoint: str, entries: Iterable[tuple[int, str]]) -> str:
    """The longest text known: the checkpoint, continued by entries `(end offset, text)` as far as they connect."""
    text = checkpoint
    for end, piece in entries:
        start = end - len(piece)
        if start > len(text):
            break
        if end > len(text):
            text += piece[len(text) - start :]
    return text


async def read_stream(redis: "Redis", generation: str, *, after: int = 0) -> list[tuple[int, str]]:
    """The stream's entries that end behind offset `after`, as `(end offset, text)`."""
    rows: Any = await redis.xrange(stream_key(generation), min=f"({after}-0" if after else "-")
    return stream_entries(rows)


def stream_entries(rows: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[tuple[int, str]]:
    """What XRANGE answers, as `(end offset, text)`."""
    return [(int(entry_id.split(b"-")[0]), fields[b"t"].decode()) for entry_id, fields in rows]
