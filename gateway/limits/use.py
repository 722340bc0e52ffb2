"""What is used of limits right now, for those who may know."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import Q
from redis import RedisError

from accounts.models import ApiKey, Membership, Team, User
from gateway.admission import Use, use_of, used_in_a_day
from gateway.limits.actions import NUMBERS
from gateway.limits.subjects import KINDS, Subject, called, kind_of, subject_of
from gateway.models import Limit

WORDS = {
    "requests_per_minute": "requests in a minute",
    "prompt_tokens_per_minute": "prompt tokens in a minute",
    "completion_tokens_per_minute": "completion tokens in a minute",
    "prompt_tokens_per_day": "prompt tokens in a day",
    "completion_tokens_per_day": "completion tokens in a day",
    "concurrent_requests": "requests at a time",
    "context_tokens": "tokens of one request, prompt and answer",
}
_OF_A_DAY = {"prompt_tokens_per_day", "completion_tokens_per_day"}


@dataclass(frozen=True)
class Amount:
    """One number of a limit. `used` is None where nothing is counted, or nobody knows at the moment."""

    name: str
    limit: int
    used: int | None

    @property
    def words(self) -> str:
        """What is counted."""
        return WORDS[self.name]

    @property
    def high(self) -> float:
        """From here on it is nearly used up."""
        return self.limit * 0.8

    @property
    def is_used_up(self) -> bool:
        """True where the next request has to wait."""
        return self.used is not None and self.used >= self.limit

    @property
    def has_little_left(self) -> bool:
        """True where it is nearly used up."""
        return self.used is not None and self.high <= self.used < self.limit


@dataclass(frozen=True)
class LimitUse:
    """A limit with what is used of it. `known` is False while the ledger doesn't answer."""

    kind: str
    name: str
    amounts: tuple[Amount, ...]
    known: bool

    @property
    def title(self) -> str:
        """Whose it is."""
        if self.kind == "self":
            return "You"
        kind = KINDS[self.kind]
        return f"{kind[0].upper()}{kind[1:]} {self.name}"


def own_limits(user: User) -> list[LimitUse]:
    """The limits that bind the person: one's own or everybody's, of one's keys, and of the teams one manages."""
    own = Limit.objects.filter(user=user).first() or Limit.objects.filter(_FOR_EVERYBODY).first()
    teams = Team.objects.filter(memberships__user=user, memberships__role__in=Membership.MANAGING)
    keys = ApiKey.objects.usable().filter(Q(user=user) | Q(team__in=teams))
    others = Limit.objects.filter(Q(team__in=teams) | Q(api_key__in=keys)).select_related("team", "api_key")
    asked: list[tuple[str, object]] = [("user", user.pk)] if own else []
    rows: list[tuple[str, Limit, Subject]] = [("self", own, user)] if own else []
    for limit in others:
        kind, subject = kind_of(limit), subject_of(limit)
        assert subject is not None
        rows.append((kind, limit, subject))
        asked.append((kind, subject.pk))
    uses, known = _uses(asked)
    return [
        LimitUse(kind, called(subject), _amounts(limit, use, one), known)
        for (kind, limit, subject), use, one in zip(rows, uses, asked, strict=True)
    ]


_FOR_EVERYBODY = Q(user=None, team=None, api_key=None, served=None)


def _uses(asked: Sequence[tuple[str, object]]) -> tuple[Sequence[Use | None], bool]:
    try:
        return use_of(asked), True
    except (RedisError, OSError):
        return [None] * len(asked), False


def _amounts(limit: Limit, use: Use | None, subject: tuple[str, object]) -> tuple[Amount, ...]:
    found = []
    for name in NUMBERS:
        most = getattr(limit, name)
        if most is not None:
            used = None if use is None or name == "context_tokens" else _used(use, name, subject)
            found.append(Amount(name, most, used))
    return tuple(found)


def _used(use: Use, name: str, subject: tuple[str, object]) -> int:
    """What no request has touched yet isn't counted yet; of a day the records know it."""
    counted: int | None = getattr(use, name)
    if counted is None:
        return used_in_a_day(*subject, name) if name in _OF_A_DAY else 0
    return counted
