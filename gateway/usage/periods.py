"""Stretches of time for which use is shown. Days and months begin at midnight UTC, as the sums do."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

from django.utils import timezone

from llamaproj.errors import InvalidInput

_EARLIEST = date(2000, 1, 1)
_LATEST = date(2999, 12, 31)
_MOST_HOURLY = timedelta(days=10)
_MOST_DAILY = timedelta(days=120)
_LONGEST = timedelta(days=3_660)


class Step(StrEnum):
    """Into what a period is cut."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"

    def floor(self, at: datetime) -> datetime:
        """The beginning of the step that holds this moment."""
        at = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        if self is Step.HOUR:
            return at
        return at.replace(hour=0) if self is Step.DAY else at.replace(hour=0, day=1)

    def after(self, at: datetime) -> datetime:
        """The beginning of the next one."""
        if self is Step.MONTH:
            return (at.replace(day=1) + timedelta(days=32)).replace(day=1)
        return at + (timedelta(hours=1) if self is Step.HOUR else timedelta(days=1))


@dataclass(frozen=True, slots=True)
class Period:
    """From `since` up to, and without, `until`; both begin an hour. `slug` is empty for one that a person typed."""

    slug: str
    name: str
    since: datetime
    until: datetime
    step: Step

    @property
    def steps(self) -> list[datetime]:
        """Where each step begins; of months the first one may be cut."""
        found, at = [], self.since
        while at < self.until:
            found.append(at)
            at = self.step.after(at)
        return found

    @property
    def first_day(self) -> date:
        """Its first day."""
        return self.since.date()

    @property
    def last_day(self) -> date:
        """Its last day."""
        return (self.until - timedelta(microseconds=1)).date()

    @property
    def query(self) -> dict[str, str]:
        """The parameters of a page that mean this period."""
        if self.slug:
            return {"period": self.slug}
        return {"from": self.first_day.isoformat(), "to": self.last_day.isoformat()}


CHOICES = {"24h": "24 hours", "7d": "7 days", "30d": "30 days", "12m": "12 months"}
DEFAULT = "7d"


def chosen(query: Mapping[str, str], *, now: datetime | None = None) -> Period:
    """What a page's parameters ask for: `period`, or the days `from` and `to`. Raises `InvalidInput`."""
    now = now or timezone.now()
    first, last = query.get("from", ""), query.get("to", "")
    if first or last:
        today = now.astimezone(UTC).date().isoformat()
        return _between(_day(first or last, "from"), _day(last or max(first, today), "to"))
    return last_of(query.get("period") or DEFAULT, now=now)


def last_of(slug: str, *, now: datetime | None = None) -> Period:
    """One of CHOICES, up to and with the present hour, day or month. Raises `InvalidInput`."""
    if slug not in CHOICES:
        raise InvalidInput(f"The period is one of {', '.join(CHOICES)}.", param="period")
    now = now or timezone.now()
    step = {"30d": Step.DAY, "12m": Step.MONTH}.get(slug, Step.HOUR)
    until = step.after(step.floor(now))
    if slug == "12m":
        since = until.replace(year=until.year - 1)
    else:
        since = until - {"24h": timedelta(hours=24), "7d": timedelta(days=7), "30d": timedelta(days=30)}[slug]
    return Period(slug, f"the last {CHOICES[slug]}", since, until, step)


def _between(first: date, last: date) -> Period:
    if first > last:
        raise InvalidInput("The period ends before it begins.", param="to")
    since = datetime.combine(first, time(), UTC)
    until = datetime.combine(last + timedelta(days=1), time(), UTC)
    length = until - since
    if length > _LONGEST:
        raise InvalidInput("The period is longer than ten years.", param="from")
    step = Step.HOUR if length <= _MOST_HOURLY else Step.DAY if length <= _MOST_DAILY else Step.MONTH
    name = f"{first:%-d %b %Y}" if first == last else f"{first:%-d %b %Y} to {last:%-d %b %Y}"
    return Period("", name, since, until, step)


def _day(text: str, param: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"`{param}` is a day, such as 2026-01-31.", param=param) from None
    if not _EARLIEST <= day <= _LATEST:
        raise InvalidInput(f"`{param}` is a day from {_EARLIEST} to {_LATEST}.", param=param)
    return day
