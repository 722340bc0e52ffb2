"""What was used in a period, from the sums: never from single records, so that it costs the same however long ago the
portal was set up and however many requests an hour had.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Generic, TypeVar

from django.db import connection

from accounts.models import ApiKey, User
from gateway.models import SUMS
from gateway.usage.periods import Period
from gateway.usage.prices import Prices
from gateway.usage.scope import Scope

Who = TypeVar("Who")


@dataclass(slots=True)
class Sums:
    """What some requests come to. `cost` is None where no model among them has a price."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_ms: float = 0.0
    total_ms: float = 0.0
    cost: Decimal | None = None

    def add(self, other: "Sums") -> None:
        """Take another's in."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.cost is not None:
            self.cost = (self.cost or Decimal()) + other.cost

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def error_rate(self) -> float:
        """The share of requests that failed, 0 to 1."""
        return self.errors / self.requests if self.requests else 0.0

    @property
    def cached_rate(self) -> float:
        """The share of prompt tokens that didn't have to be read again, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def mean_ms(self) -> float | None:
        """How long a request took on average."""
        return self.total_ms / self.requests if self.requests else None

    @property
    def mean_queue_ms(self) -> float | None:
        """How long a request waited on average."""
        return self.queue_ms / self.requests if self.requests else None


@dataclass(frozen=True, slots=True)
class Line(Generic[Who]):
    """A row of a table: a model, key or person, and its share. `who` is None for what has none, or none any more."""

    who: Who | None
    key: Any
    sums: Sums


@dataclass(frozen=True, slots=True)
class Report:
    """A period's use. Lines are sorted, most tokens first; `by_step` has (step, model) where there was any."""

    period: Period
    total: Sums
    models: list[Line[str]]
    keys: list[Line[ApiKey]]
    people: list[Line[User]]
    by_step: dict[tuple[datetime, str], Sums] = field(default_factory=dict)


def report(scope: Scope, period: Period, prices: Prices) -> Report:
    """The scope's use in the period; three queries, whatever there is."""
    total = Sums()
    steps: defaultdict[tuple[datetime, str], Sums] = defaultdict(Sums)
    models: defaultdict[str, Sums] = defaultdict(Sums)
    keys: defaultdict[Any, Sums] = defaultdict(Sums)
    people: defaultdict[Any, Sums] = defaultdict(Sums)
    for kind, step, model, key, person, sums in _grouped(scope, period):
        sums.cost = prices.cost(model, sums.prompt_tokens, sums.completion_tokens)
        if kind == "step":
            steps[max(step.astimezone(UTC), period.since), model].add(sums)
            models[model].add(sums)
            total.add(sums)
        elif kind == "key":
            keys[key].add(sums)
        else:
            people[person].add(sums)
    known_keys = ApiKey.objects.select_related("user", "team").in_bulk([key for key in keys if key])
    known_people = User.objects.in_bulk([person for person in people if person])
    return Report(
        period=period,
        total=total,
        models=_lines(models, lambda slug: slug),
        keys=_lines(keys, known_keys.get),
        people=_lines(people, known_people.get),
        by_step=dict(steps),
    )


def _lines(found: dict[Any, Sums], who: Callable[[Any], Who | None]) -> list[Line[Who]]:
    lines = [Line(who(key), key, sums) for key, sums in found.items()]
    return sorted(lines, key=lambda line: (-line.sums.tokens, -line.sums.requests))


def _grouped(scope: Scope, period: Period) -> Iterable[tuple[str, datetime, str, Any, Any, Sums]]:
    """Sums by step and model, by key and model, by person and model: all from one pass."""
    inner = scope.sums(period).order_by().values("begins", "model_slug", "api_key_id", "user_id", *SUMS)
    sql, parameters = inner.query.sql_with_params()
    with connection.cursor() as cursor:
        cursor.execute(_SQL.format(rows=sql), [period.step.value, *parameters])
        for by_step, by_key, step, model, key, person, *sums in cursor:
            kind = "step" if by_step else "key" if by_key else "person"
            yield kind, step, model, key, person, Sums(**dict(zip(SUMS, map(_number, sums), strict=True)))


def _number(value: Any) -> Any:
    """PostgreSQL's sums of bigint are decimals."""
    return int(value) if isinstance(value, Decimal) else value


_SQL = f"""
SELECT GROUPING(step) = 0, GROUPING(api_key_id) = 0, step, model_slug, api_key_id, user_id,
       {", ".join(f"sum({name})" for name in SUMS)}
FROM (SELECT date_trunc(%s, begins, 'UTC') AS step, * FROM ({{rows}}) AS visible) AS stepped
GROUP BY GROUPING SETS ((step, model_slug), (api_key_id, model_slug), (user_id, model_slug))
"""  # noqa: S608  (constants; the rows are Django's own query)
