"""Whose use somebody looks at: one's own, that of a team one manages, or everybody's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import F, Model, QuerySet

from accounts.models import Team, User
from gateway.models import UsageDay, UsageHour, UsageRecord
from gateway.usage.periods import Period, Step
from llamaproj.errors import InvalidInput, NotAllowed, NotFound

Row = TypeVar("Row", bound=Model)

_MOST_KEY = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Scope:
    """What of the sums and records is looked at; narrowed to a model, a key or a person where these are given."""

    viewer: User
    team: Team | None = None
    everybody: bool = False
    model: str = ""
    key: UUID | None = None
    person: int | None = None

    @property
    def of_several(self) -> bool:
        """Whether others' use may be in it."""
        return self.everybody or self.team is not None

    @property
    def query(self) -> dict[str, str]:
        """The parameters of a page that narrow it like this."""
        said = {"model": self.model, "key": self.key, "person": self.person}
        return {name: str(value) for name, value in said.items() if value}

    def sums(self, period: Period) -> QuerySet[Any]:
        """The sums of the period, of its days where it is cut into nothing shorter."""
        sums = sums_seen_by(self.viewer, of_days=period.step is not Step.HOUR)
        return self._of(sums).filter(begins__gte=period.since, begins__lt=period.until)

    def records(self, period: Period) -> QuerySet[UsageRecord]:
        """The single requests of the period, the newest first, as far back as they are kept."""
        records = UsageRecord.objects.visible_to(self.viewer)
        return self._of(records).filter(at__gte=period.since, at__lt=period.until).order_by("-at", "-pk")

    def _of(self, rows: QuerySet[Row]) -> QuerySet[Row]:
        if self.team is not None:
            rows = rows.filter(team=self.team)
        elif not self.everybody:
            rows = rows.filter(user=self.viewer)
        if self.model:
            rows = rows.filter(model_slug=self.model)
        if self.key:
            rows = rows.filter(api_key=self.key)
        if self.person:
            rows = rows.filter(user=self.person)
        return rows


def sums_seen_by(viewer: User, *, of_days: bool) -> QuerySet[Any]:
    """The sums of days, or of hours; `begins` is when each does."""
    if of_days:
        return UsageDay.objects.visible_to(viewer).annotate(begins=F("day"))
    return UsageHour.objects.visible_to(viewer).annotate(begins=F("hour"))


def chosen(
    viewer: User, query: Mapping[str, str], *, team_pk: int | None = None, everybody: bool = False
) -> Scope:
    """A team's, everybody's or, without either, one's own, narrowed by the query's `model`, `key` and `person`.

    Raises `NotFound` for a team one doesn't manage, `NotAllowed` for everybody's, `InvalidInput`.
    """
    if everybody and not viewer.is_staff:
        raise NotAllowed("Only administrators see everybody's use.")
    team = Team.objects.manageable_by(viewer).filter(pk=team_pk).first() if team_pk is not None else None
    if team_pk is not None and team is None:
        raise NotFound("There is no such team.")
    model = query.get("model", "").replace("\0", "")[:100]
    return Scope(viewer, team, everybody, model, _key(query.get("key", "")), _person(query.get("person", "")))


def _key(text: str) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        raise InvalidInput("`key` is the id of an API key.", param="key") from None


def _person(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:20]) <= _MOST_KEY):
        raise InvalidInput("`person` is a person's number.", param="person")
    return int(text[:20])
