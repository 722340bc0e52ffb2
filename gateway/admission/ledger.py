"""What was used against what is allowed: sentences, headers, the past of a window, and use for pages."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from channels.db import database_sync_to_async
from django.db.models import Q, QuerySet
from django.utils import timezone
from django_redis import get_redis_connection

from gateway.admission import scripts
from gateway.admission.gate import Gate
from gateway.admission.subjects import METRICS, Subject, name_of
from gateway.errors import LimitReached
from gateway.models import UsageRecord
from models_admin.models import ServedModel

# Metrics by their numbers in the scripts.
_CONCURRENT = 6
_LENGTHS = frozenset({3, 5})
_DAYS = {4: "prompt_tokens", 5: "completion_tokens"}
_BUCKET_S = 1800
_DAY = timedelta(hours=24)


@dataclass(frozen=True)
class Use:
    """What counts now against each limit, reservations included. None: nothing is counted, as no limit stands there."""

    requests_per_minute: int | None
    prompt_tokens_per_minute: int | None
    completion_tokens_per_minute: int | None
    prompt_tokens_per_day: int | None
    completion_tokens_per_day: int | None
    concurrent_requests: int | None


def use_of(subjects: Sequence[tuple[str, object]]) -> list[Use]:
    """The use of each ("user" | "team" | "key" | "model", pk), in one question. Raises `RedisError` or `OSError`."""
    if not subjects:
        return []
    names = [name_of(kind, pk) for kind, pk in subjects]
    rows: Any = get_redis_connection().eval(scripts.USE.text, 0, *names)
    return [Use(**_use(row)) for row in rows]


def _use(row: Iterable[int]) -> dict[str, int | None]:
    return {name: None if count < 0 else count for name, count in zip(METRICS, row, strict=True)}


def used_in_a_day(kind: str, pk: object, metric: str) -> int:
    """Tokens of the last day as the records have them: for a window that no request has begun yet."""
    number = next(number for number, name in enumerate(METRICS, 1) if name == metric)
    return sum(_past(name_of(kind, pk), number).values())


def refusal(kind: bytes, subjects: Sequence[Subject], rest: Sequence[Any]) -> LimitReached:
    """Which limit of whom, in a sentence, and when there is room again."""
    place, metric, limit, used = (int(part) for part in rest[:4])
    subject = subjects[place - 1]
    said = f"At most {subject.says(metric, limit)}"
    if kind == b"never":
        return LimitReached(f"{said}, and this request alone asks for more: lower max_tokens.")
    wait_s = int(rest[4]) / 1000
    if metric == _CONCURRENT:
        return LimitReached(f"{said}; try again when one has ended.", retry_after=wait_s)
    is_short = metric in _LENGTHS and used < limit
    shorter = f"ask for a shorter answer (max_tokens), {limit - used:,} are left; " if is_short else ""
    return LimitReached(
        f"{said}; {shorter}there is room again in {_duration(wait_s)}.",
        retry_after=wait_s,
        is_of_a_day=metric in _DAYS,
    )


def headers(rest: Sequence[int]) -> list[tuple[bytes, bytes]]:
    """`x-ratelimit-*` as OpenAI spells them, of the subject with the least left; none where nothing is limited."""
    if len(rest) < 5:
        return []
    found: list[tuple[bytes, bytes]] = []
    reset = _duration(rest[4] / 1000).replace(" ", "").encode()
    for name, limit, remaining in ((b"requests", rest[0], rest[1]), (b"tokens", rest[2], rest[3])):
        if limit >= 0:
            found += [
                (b"x-ratelimit-limit-" + name, b"%d" % limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % max(0, remaining)),
                (b"x-ratelimit-reset-" + name, reset),
            ]
    return found


def _duration(seconds: float) -> str:
    whole = max(1, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    parts = [f"{value} {unit}" for value, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if value]
    return " ".join(parts)


async def seed(gate: Gate, windows: Iterable[str]) -> None:
    """Begin days' windows with what Postgres knows of them: an emptied Valkey gives nobody a new day."""
    arguments: list[str | int] = []
    for window in windows:
        subject, _, metric = window.rpartition(":")
        past = await database_sync_to_async(_past)(subject, int(metric))
        arguments += (subject, int(metric), len(past))
        for bucket, amount in past.items():
            arguments += (bucket, amount)
    await gate.run(scripts.SEED, *arguments)


def _past(subject: str, metric: int) -> dict[int, int]:
    """Tokens of the last day by half hours, as the scripts number them."""
    kind, _, pk = subject.partition(":")
    found: dict[int, int] = defaultdict(int)
    records = _records(kind, pk).filter(at__gt=timezone.now() - _DAY)
    for at, amount in records.values_list("at", _DAYS[metric]).iterator():
        found[int(at.timestamp()) // _BUCKET_S] += amount
    return {bucket: amount for bucket, amount in found.items() if amount}


def _records(kind: str, pk: str) -> QuerySet[UsageRecord]:
    """What counts for a subject. A person's request counts for those of their teams that give access to the model."""
    records = UsageRecord.objects.all()
    if kind == "user":
        return records.filter(user=int(pk))
    if kind == "key":
        return records.filter(api_key=UUID(pk))
    if kind == "model":
        return records.filter(served=int(pk))
    opened = ServedModel.objects.filter(Q(teams__isnull=True) | Q(teams=int(pk)))
    by_members = Q(team=None, user__teams=int(pk), served__in=opened)
    return records.filter(Q(team=int(pk)) | by_members).distinct()
