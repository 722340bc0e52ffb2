"""A report's lines as the page's tables show them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlencode

from accounts.models import ApiKey, User
from gateway.usage.periods import Period
from gateway.usage.report import Line, Report, Sums
from gateway.usage.scope import Scope

Who = TypeVar("Who")

# What a page shows; the rest is in the file to download.
_MOST = 25


@dataclass(frozen=True, slots=True)
class Row:
    """A model, key or person: its name, what more is known, and the page's query that shows it alone."""

    name: str
    note: str
    query: str
    sums: Sums
    share: float


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title. `left_out`: how many more there are."""

    slug: str
    title: str
    head: str
    rows: list[Row]
    left_out: int


def tables(scope: Scope, period: Period, report: Report) -> list[Table]:
    """By model, by key and, where others' use may be in it, by person."""

    def table(
        slug: str, title: str, lines: list[Line[Who]], told: Callable[[Line[Who]], tuple[str, str]]
    ) -> Table:
        rows = [
            Row(
                *told(line),
                _alone(scope, period, slug, line),
                line.sums,
                line.sums.tokens / report.total.tokens if report.total.tokens else 0.0,
            )
            for line in lines[:_MOST]
        ]
        return Table(slug, title, slug.capitalize(), rows, max(len(lines) - _MOST, 0))

    found = [
        table("model", "By model", report.models, lambda line: (line.key, "")),
        table("key", "By key", report.keys, lambda line: key_in_words(line, with_person=scope.of_several)),
    ]
    if scope.of_several:
        found.append(table("person", "By person", report.people, person_in_words))
    return found


def key_in_words(line: Line[ApiKey], *, with_person: bool) -> tuple[str, str]:
    """Its name, and whose it is."""
    key = line.who
    if line.key is None:
        return "Chat", "without a key"
    if key is None:
        return "A deleted key", str(line.key)[:8]
    whose = [key.user.display_name] if with_person else []
    return key.name, ", ".join([*whose, *([f"team {key.team}"] if key.team else [])])


def person_in_words(line: Line[User]) -> tuple[str, str]:
    """The full name, and the one to sign in with."""
    if line.who is None:
        return "Somebody who is gone", f"number {line.key}" if line.key else ""
    name = line.who.display_name
    return name, "" if name == line.who.username else line.who.username


def _alone(scope: Scope, period: Period, narrow: str, line: Line[Who]) -> str:
    if line.key is None or narrow in scope.query:
        return ""
    return urlencode({**period.query, **scope.query, narrow: line.key})
