"""Records into the database, with all their sums, each exactly once.

One statement writes records, the sums of their hours and days, and the totals, and sums only what it has really
inserted: a record that comes twice, to whomever, counts once.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson
from django.db import IntegrityError, connection, transaction

from accounts import keys
from accounts.models import ApiKey, Team, User
from gateway.models import BUCKETS_MS, SUMS, UsageDay, UsageHour, UsageRecord, UsageTotal
from models_admin.models import Instance, ServedModel

# What vanishes between looking and committing is looked for again.
_TRIES = 3

_COLUMNS: Final = tuple(field.attname for field in UsageRecord._meta.local_concrete_fields)


def write(rows: Sequence[UsageRecord]) -> int:
    """Write those that aren't there yet; how many that were.

    Whom they name may have been deleted meanwhile: their records then name nobody; the sums keep the number.
    """
    if not rows:
        return 0
    written = 0
    for left in reversed(range(_TRIES)):
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(_SQL, [_json(rows)])
                [written] = cursor.fetchone()
            break
        except IntegrityError:
            if not left:
                raise
    keys.used(_last_uses(rows))
    return written


def _last_uses(rows: Sequence[UsageRecord]) -> dict[UUID, datetime]:
    last: dict[UUID, datetime] = {}
    for row in rows:
        if row.api_key_id is not None:
            last[row.api_key_id] = max(row.at, last.get(row.api_key_id, row.at))
    return last


def _json(rows: Sequence[UsageRecord]) -> str:
    """The rows as PostgreSQL reads them, one of each id."""
    unique: dict[Any, UsageRecord] = {row.pk: row for row in rows}
    return orjson.dumps(
        [{column: getattr(row, column) for column in _COLUMNS} for row in unique.values()]
    ).decode()


def _known(column: str, table: str) -> str:
    """The key in a column, or NULL where the row it names is gone."""
    return f"(SELECT id FROM {table} WHERE id = incoming.{column})"  # noqa: S608  (constants)


_NAMES = {
    "user_id": User,
    "team_id": Team,
    "api_key_id": ApiKey,
    "served_id": ServedModel,
    "instance_id": Instance,
}
_VALUES = ", ".join(
    _known(column, _NAMES[column]._meta.db_table) if column in _NAMES else f"incoming.{column}"
    for column in _COLUMNS
)
_WITHIN = ", ".join(f"count(*) FILTER (WHERE total_ms <= {bound})" for bound in BUCKETS_MS)
# What records don't have as a column is counted.
_COUNTED = {
    "requests": "count(*)",
    "errors": f"count(*) FILTER (WHERE finish = '{UsageRecord.Finish.ERROR}')",
}
_TOTAL_KEY = "model_slug, door, finish"
_TOTAL_SUMS = ("requests", "prompt_tokens", "completion_tokens", "total_ms")


def _added(names: Sequence[str]) -> str:
    return ", ".join(f"{name} = known.{name} + excluded.{name}" for name in names)


def _summed(sums: type[UsageHour] | type[UsageDay], step: str) -> str:
    """The statement that adds what is fresh to the sums of its hours or days."""
    key = f"{step}, user_id, team_id, api_key_id, model_slug, door"
    amounts = ", ".join(_COUNTED.get(name, f"sum({name})") for name in SUMS)
    return f"""
    INSERT INTO {sums._meta.db_table} AS known ({key}, {", ".join(SUMS)})
    SELECT date_trunc('{step}', at, 'UTC'), user_id, team_id, api_key_id, model_slug, door, {amounts}
    FROM fresh GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
    ON CONFLICT ({key}) DO UPDATE SET {_added(SUMS)}
    """  # noqa: S608  (constants)


# Sorted, so that two writers at once wait for each other and never in a circle.
_SQL = f"""
WITH incoming AS MATERIALIZED (
    SELECT * FROM json_populate_recordset(NULL::{UsageRecord._meta.db_table}, %s::json)
), written AS (
    INSERT INTO {UsageRecord._meta.db_table} ({", ".join(_COLUMNS)})
    SELECT {_VALUES} FROM incoming ORDER BY incoming.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), fresh AS (
    SELECT incoming.* FROM incoming JOIN written USING (id)
), hours AS (
    {_summed(UsageHour, "hour")}
), days AS (
    {_summed(UsageDay, "day")}
), totals AS (
    INSERT INTO {UsageTotal._meta.db_table} AS known ({_TOTAL_KEY}, {", ".join(_TOTAL_SUMS)}, within)
    SELECT model_slug, door, finish,
           count(*), sum(prompt_tokens), sum(completion_tokens), sum(total_ms), ARRAY[{_WITHIN}]
    FROM fresh GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT ({_TOTAL_KEY}) DO UPDATE SET {_added(_TOTAL_SUMS)}, within = ARRAY(
        SELECT before + more FROM unnest(known.within, excluded.within) WITH ORDINALITY AS pair (before, more, place)
        ORDER BY place
    )
)
SELECT count(*) FROM written
"""  # noqa: S608  (what is put in are the constants above)
