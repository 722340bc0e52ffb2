"""The stream of records, drained into the database: every second, by any worker, by several at once.

An entry leaves the stream only after it is committed. One whose reader died, or whose database was away, is taken over
after a moment; `books.write` writes what comes twice once.
"""

from collections.abc import Sequence
from typing import Any

import structlog
from django.db import DataError, IntegrityError
from django_redis import get_redis_connection
from redis import Redis, ResponseError

from gateway.models import UsageRecord
from gateway.usage import books
from gateway.usage.record import FIELD, MOST_WAITING, STREAM, BadRecord, decode

log = structlog.get_logger(__name__)

GROUP = "drain"
# One name for all: an entry goes to one of them, and idleness alone says that it was left.
_READER = "drain"
# Where bad entries lie for whoever wonders, the newest few.
BAD = f"{STREAM}:bad"
_MOST_BAD = 1_000
_BATCH = 500
# With its pauses, what one second's task may take; the next one goes on.
_MOST_BATCHES = 20
# Longer than a batch ever takes, as short as a restart should be felt.
TAKEN_OVER_AFTER_MS = 15_000

Fields = dict[Any, Any]
Entry = tuple[Any, Fields]


def drain() -> int:
    """Write what waits in the stream; how many records were new. Raises the database's and Valkey's errors."""
    valkey: Redis = get_redis_connection("default")
    if lost := valkey.xtrim(STREAM, maxlen=MOST_WAITING, approximate=True):
        log.error("usage records lost", count=lost, why="too many wait")
    written = 0
    for _ in range(_MOST_BATCHES):
        entries = _next(valkey)
        if not entries:
            break
        written += _write(valkey, entries)
        ids = [entry_id for entry_id, _ in entries]
        with valkey.pipeline() as pipeline:
            pipeline.xack(STREAM, GROUP, *ids)
            pipeline.xdel(STREAM, *ids)
            pipeline.execute()
    return written


def write_directly(payloads: Sequence[bytes]) -> int:
    """Write records past the stream, while Valkey is away; how many were new. Raises the database's errors."""
    rows = []
    for payload in payloads:
        try:
            rows.append(decode(payload))
        except BadRecord as error:
            log.error("bad usage record", problem=str(error))
    return books.write(rows)


def _next(valkey: Redis) -> list[Entry]:
    """A batch: what somebody left first, then what is new."""
    try:
        return _left(valkey) or _new(valkey)
    except ResponseError as error:
        if not str(error).startswith("NOGROUP"):
            raise
        # The first time, and after somebody emptied Valkey.
        _make_group(valkey)
        return _new(valkey)


def _left(valkey: Redis) -> list[Entry]:
    answer: Any = valkey.xautoclaim(STREAM, GROUP, _READER, TAKEN_OVER_AFTER_MS, count=_BATCH)
    entries: list[Entry] = answer[1]
    return entries


def _new(valkey: Redis) -> list[Entry]:
    answer: Any = valkey.xreadgroup(GROUP, _READER, {STREAM: ">"}, count=_BATCH)
    return answer[0][1] if answer else []


def _make_group(valkey: Redis) -> None:
    try:
        valkey.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


def _write(valkey: Redis, entries: list[Entry]) -> int:
    rows: list[tuple[UsageRecord, Fields]] = []
    for _, fields in entries:
        try:
            rows.append((decode(fields.get(FIELD.encode(), b"")), fields))
        except BadRecord as error:
            _set_aside(valkey, fields, str(error))
    try:
        return books.write([row for row, _ in rows])
    except (DataError, IntegrityError):
        # One of them the database refuses: the others shall not wait for it.
        return sum(_write_one(valkey, row, fields) for row, fields in rows)


def _write_one(valkey: Redis, row: UsageRecord, fields: Fields) -> int:
    try:
        return books.write([row])
    except (DataError, IntegrityError) as error:
        _set_aside(valkey, fields, str(error))
        return 0


def _set_aside(valkey: Redis, fields: Fields, problem: str) -> None:
    log.error("bad usage record", problem=problem, kept_in=BAD)
    valkey.xadd(BAD, fields | {b"problem": problem}, maxlen=_MOST_BAD)
