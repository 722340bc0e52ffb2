"""One request's record on its way from the process that served it to the database.

It is made once, with the id it will have in the database, so that what is delivered twice is written once. In between
it is JSON in a Valkey stream: `XADD llamaproj:usage * r <bytes>`.
"""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import orjson

from gateway.models import UsageRecord

STREAM = "llamaproj:usage"
# The one field of the stream's entries.
FIELD = "r"
# Far more than ever wait; so many, some 250 MB, may fill the memory while the database is away. Then the oldest go.
MOST_WAITING = 500_000

_MOST_INTEGER = 2**31 - 1
_MOST_STATUS = 2**15 - 1
_MOST_KEY = 2**63 - 1
# The clock of a machine may be wrong, but not by more than this.
_YEARS = range(2000, 3000)
# How long each text may be: as the columns of UsageRecord.
_TEXTS = {"model_slug": 100, "endpoint": 40, "request_id": 64, "error_code": 40}
_DOORS = frozenset(UsageRecord.Door.values)
_FINISHES = frozenset(UsageRecord.Finish.values)


class BadRecord(Exception):
    """Bytes that are no record; the message says why."""


@dataclass(slots=True, kw_only=True)
class Record:
    """What one request took. `at` is its end; `team` is the key's team; times are in milliseconds."""

    user: int | None
    model_slug: str
    door: str
    finish: str
    served: int | None = None
    instance: UUID | None = None
    api_key: UUID | None = None
    team: int | None = None
    endpoint: str = "chat/completions"
    request_id: str = ""
    error_code: str = ""
    status: int = 200
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_ms: float = 0.0
    load_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float | None = None
    decode_ms: float = 0.0
    total_ms: float = 0.0
    id: UUID = field(default_factory=uuid4)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def encode(self) -> bytes:
        """The bytes for the stream."""
        return orjson.dumps(self)


def decode(payload: bytes) -> UsageRecord:
    """The row, not yet written. Raises `BadRecord`.

    Nothing in it can make the database refuse it: texts are cut to their columns, numbers kept within theirs.
    """
    try:
        said = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise BadRecord(f"not JSON: {error}") from None
    if not isinstance(said, dict):
        raise BadRecord("not an object")
    try:
        return _row(said)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadRecord(f"{type(error).__name__}: {error}") from None


def _row(said: dict[str, Any]) -> UsageRecord:
    if said["door"] not in _DOORS or said["finish"] not in _FINISHES:
        raise ValueError("an unknown door or finish")
    at = datetime.fromisoformat(said["at"])
    if at.year not in _YEARS:
        raise ValueError("an impossible time")
    first_token_ms = said.get("first_token_ms")
    return UsageRecord(
        id=UUID(str(said["id"])),
        at=at if at.tzinfo else at.replace(tzinfo=UTC),
        user_id=_key(said.get("user")),
        team_id=_key(said.get("team")),
        served_id=_key(said.get("served")),
        api_key_id=_uuid(said.get("api_key")),
        instance_id=_uuid(said.get("instance")),
        door=said["door"],
        finish=said["finish"],
        status=min(_count(said.get("status", 200)), _MOST_STATUS),
        first_token_ms=None if first_token_ms is None else _ms(first_token_ms),
        **{name: _text(said.get(name, ""), longest) for name, longest in _TEXTS.items()},
        **{
            name: _count(said.get(name, 0))
            for name in ("prompt_tokens", "completion_tokens", "cached_tokens")
        },
        **{
            name: _ms(said.get(name, 0))
            for name in ("queue_ms", "load_ms", "prefill_ms", "decode_ms", "total_ms")
        },
    )


def _text(value: Any, longest: int) -> str:
    return str(value).replace("\0", "")[:longest]


def _count(value: Any) -> int:
    return min(max(int(value), 0), _MOST_INTEGER)


def _ms(value: Any) -> float:
    number = float(value)
    return max(number, 0.0) if math.isfinite(number) else 0.0


def _key(value: Any) -> int | None:
    if value is None:
        return None
    if not 0 < int(value) <= _MOST_KEY:
        raise ValueError("an impossible key")
    return int(value)


def _uuid(value: Any) -> UUID | None:
    return None if value is None else UUID(str(value))
