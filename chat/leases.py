"""Who writes which answer: generations are claimed, held for a short while, and given up.

Every write names the lease's owner, so a generator that was paused past its lease can't write over its successor.
Leases run by the database's clock: those of two generators' machines may differ by more than a lease is long.
All functions are synchronous and touch Postgres only.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from django.db import connection, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import User
from chat.models import Generation
from chat.states import FINAL, MessageStatus
from models_admin.models import ServedModel

# A generator that dies is missed for this long; one that lives renews three times in it.
LEASE_S = 6.0
RENEW_S = 2.0
# A generation that kills its generators must not do so for ever.
MAX_ATTEMPTS = 8


@dataclass(frozen=True)
class Job:
    """A claimed generation with all it needs."""

    generation: UUID
    message: UUID
    conversation: UUID
    owner: User
    api_key_pk: UUID | None
    served: ServedModel | None
    attempts: int
    text: str
    history: list[dict[str, str]]
    stop_requested: bool


@transaction.atomic
def claim(owner: UUID, limit: int, *, besides: Iterable[UUID] = ()) -> list[UUID]:
    """Take up to `limit` generations that nobody holds, the oldest first, `besides` those the caller still writes."""
    free = (
        Generation.objects.select_for_update(skip_locked=True)
        .filter(Q(lease_until__isnull=True) | Q(lease_until__lt=Now()), ended_at__isnull=True)
        .exclude(pk__in=list(besides))
        .order_by("created_at")
        .values_list("pk", flat=True)[:limit]
    )
    taken = list(free)
    if taken:
        Generation.objects.filter(pk__in=taken).update(
            lease_owner=owner, lease_until=Now() + timedelta(seconds=LEASE_S), attempts=F("attempts") + 1
        )
    return taken


def load(generation: UUID) -> Job:
    """Everything about a claimed generation, in a bounded number of queries."""
    row = Generation.objects.select_related("message__conversation__owner", "served").get(pk=generation)
    earlier = row.message.conversation.messages.filter(number__lt=row.message.number).values_list(
        "role", "text"
    )
    return Job(
        generation=row.pk,
        message=row.message_id,
        conversation=row.message.conversation_id,
        owner=row.message.conversation.owner,
        api_key_pk=row.api_key_pk,
        served=row.served,
        attempts=row.attempts,
        text=row.message.text,
        history=_turns(earlier),
        stop_requested=row.stop_requested,
    )


def _turns(messages: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Messages as a chat template wants them: roles in turn, so what a failed answer left side by side is joined."""
    turns: list[dict[str, str]] = []
    for role, text in messages:
        if not text:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + text
        else:
            turns.append({"role": role, "content": text})
    return turns


@dataclass(frozen=True)
class Renewal:
    """What a renewal found: those still held, and those that somebody asked to stop."""

    held: set[UUID]
    stop: set[UUID]


def renew(owner: UUID, generations: Iterable[UUID]) -> Renewal:
    """Hold the generations for another while."""
    mine = Generation.objects.filter(pk__in=list(generations), lease_owner=owner, ended_at__isnull=True)
    mine.update(lease_until=Now() + timedelta(seconds=LEASE_S))
    rows = dict(mine.values_list("pk", "stop_requested"))
    return Renewal(held=set(rows), stop={pk for pk, stop in rows.items() if stop})


def checkpoint(owner: UUID, texts: dict[UUID, tuple[str, MessageStatus]]) -> None:
    """Write the text and status of several messages, by generation, in one statement; those not held are left alone."""
    if not texts:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE chat_message AS m SET text = new.text, status = new.status
            FROM unnest(%s::uuid[], %s::text[], %s::text[]) AS new (generation, text, status)
            JOIN chat_generation AS g ON g.id = new.generation
            WHERE m.id = g.message_id AND g.lease_owner = %s AND g.ended_at IS NULL
            """,
            [
                list(texts),
                [text for text, _ in texts.values()],
                [str(status) for _, status in texts.values()],
                owner,
            ],
        )


def finish(
    owner: UUID,
    generation: UUID,
    status: MessageStatus,
    *,
    text: str,
    error: str,
    model_slug: str,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    timings: dict[str, float],
) -> bool:
    """End a generation with its message's last state, in one statement. False when somebody else holds it by now."""
    assert status in FINAL
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH ended AS (
                UPDATE chat_generation SET ended_at = %s, lease_until = NULL
                WHERE id = %s AND lease_owner = %s AND ended_at IS NULL
                RETURNING message_id
            )
            UPDATE chat_message AS m
            SET status = %s, text = %s, error = %s, model_slug = %s,
                prompt_tokens = %s, completion_tokens = %s, timings = %s::jsonb
            FROM ended WHERE m.id = ended.message_id
            """,
            [
                *(timezone.now(), generation, owner),
                *(
                    str(status),
                    text,
                    error,
                    model_slug,
                    prompt_tokens,
                    completion_tokens,
                    json.dumps(timings),
                ),
            ],
        )
        return bool(cursor.rowcount)


def release(owner: UUID, generations: Iterable[UUID]) -> None:
    """Give generations back at an orderly end, so that another generator need not wait for the leases to run out."""
    Generation.objects.filter(pk__in=list(generations), lease_owner=owner, ended_at__isnull=True).update(
        lease_until=None, lease_owner=None, attempts=F("attempts") - 1
    )
