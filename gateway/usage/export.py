"""Use as tables for spreadsheets, written while they are read: a year takes no more memory than an hour."""

import csv
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from channels.db import database_sync_to_async
from django.db.models import Q, Sum
from django.http import StreamingHttpResponse

from accounts.models import ApiKey, User
from accounts.spreadsheet import cell
from gateway.models import SUMS
from gateway.usage.periods import Period
from gateway.usage.prices import Prices
from gateway.usage.scope import Scope

Batch = list[Sequence[object]]

_BATCH = 1_000
# Without the times: whoever adds up rows wants no sums of durations beside them.
_SUMS = [name for name in SUMS if not name.endswith("_ms")]
_OF_A_SUM = ("user_id", "api_key_id", "model_slug", "door")
# The columns of a record, by their names in the file.
_OF_A_RECORD = {
    "id": "id",
    "at": "at",
    "person": "user__username",
    "team": "team__name",
    "key": "api_key_id",
    "key_name": "api_key__name",
    "model": "model_slug",
} | {
    name: name
    for name in (
        "endpoint", "door", "finish", "status", "error_code", "request_id", "prompt_tokens", "completion_tokens",
        "cached_tokens", "queue_ms", "load_ms", "prefill_ms", "first_token_ms", "decode_ms", "total_ms",
    )
}  # fmt: skip


def sums(scope: Scope, period: Period, prices: Prices) -> StreamingHttpResponse:
    """The sums of each step, person, key, model and door."""
    header = [period.step, "person", "key", "key_name", "model", "door", *_SUMS, f"cost_{prices.currency}"]
    return _download("usage", period, header, _batches_of_sums(scope, period, prices))


def records(scope: Scope, period: Period) -> StreamingHttpResponse:
    """The single requests, the newest first."""
    return _download("requests", period, list(_OF_A_RECORD), _batches_of_records(scope, period))


def _download(
    name: str, period: Period, header: Sequence[object], batches: Iterator[Batch]
) -> StreamingHttpResponse:
    response = StreamingHttpResponse(_pieces(header, batches), content_type="text/csv; charset=utf-8")
    filename = f"{name}-{period.first_day}-to-{period.last_day}.csv"
    response["content-disposition"] = f'attachment; filename="{filename}"'
    return response


async def _pieces(header: Sequence[object], batches: Iterator[Batch]) -> AsyncIterator[bytes]:
    # Excel takes the file for UTF-8 only with its mark.
    yield "\ufeff".encode() + _encoded([header])
    while (batch := await database_sync_to_async(next)(batches, None)) is not None:
        yield _encoded(batch)


def _encoded(rows: Batch) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([cell(_told(value)) for value in row] for row in rows)
    return text.getvalue().encode()


def _told(value: object) -> object:
    """Times as spreadsheets read them, in UTC."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if isinstance(value, datetime) else value


def _batches_of_sums(scope: Scope, period: Period, prices: Prices) -> Iterator[Batch]:
    """One batch a step."""
    for at in period.steps:
        step = Period("", "", at, min(period.step.after(at), period.until), period.step)
        rows = list(scope.sums(step).order_by(*_OF_A_SUM).values_list(*_OF_A_SUM).annotate(*map(Sum, _SUMS)))
        people = User.objects.in_bulk({row[0] for row in rows if row[0]})
        keys = ApiKey.objects.in_bulk({row[1] for row in rows if row[1]})
        batch: Batch = []
        for person, key, model, door, *amounts in rows:
            cost = prices.cost(model, amounts[2], amounts[3])
            username = people[person].username if person in people else None
            key_name = keys[key].name if key in keys else None
            batch.append([at, username, key, key_name, model, door, *amounts, cost])
        if batch:
            yield batch


def _batches_of_records(scope: Scope, period: Period) -> Iterator[Batch]:
    """Each begins where the one before ended; nothing is held open in between."""
    rows: Any = scope.records(period).values_list("at", "pk", *_OF_A_RECORD.values())
    batch = list(rows[:_BATCH])
    while batch:
        yield [row[2:] for row in batch]
        at, pk = batch[-1][:2]
        batch = list(rows.filter(Q(at__lt=at) | Q(pk__lt=pk), at__lte=at)[:_BATCH])
