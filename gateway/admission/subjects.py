"""Whom a limit limits, in the words of the scripts and of people."""

from dataclasses import dataclass

from gateway.models import Limit

# In the order of the scripts' metrics, which count from 1.
METRICS = (
    "requests_per_minute",
    "prompt_tokens_per_minute",
    "completion_tokens_per_minute",
    "prompt_tokens_per_day",
    "completion_tokens_per_day",
    "concurrent_requests",
)
_SAID = (
    ("request", "a minute"),
    ("prompt token", "a minute"),
    ("completion token", "a minute"),
    ("prompt token", "a day"),
    ("completion token", "a day"),
    ("request", "at the same time"),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A key, person, team or model with limits. `name` is theirs in the ledger, `owner` how a sentence calls them."""

    name: str
    owner: str
    limits: tuple[int | None, ...]

    @staticmethod
    def is_for_everybody(limit: Limit) -> bool:
        """True for the row that holds for each person without one."""
        return not (limit.user_id or limit.team_id or limit.api_key_id or limit.served_id)

    @classmethod
    def of(cls, limit: Limit, user_pk: int) -> "Subject":
        """The subject of a row; of the one for everybody it is the person who asks."""
        if limit.api_key_id:
            name, owner = name_of("key", limit.api_key_id), "this API key"
        elif limit.team_id and limit.team:
            name, owner = name_of("team", limit.team_id), f"the team {limit.team.name}"
        elif limit.served_id and limit.served:
            name, owner = name_of("model", limit.served_id), f"the model {limit.served.slug}"
        else:
            name, owner = name_of("user", user_pk), "you"
        return cls(name, owner, tuple(getattr(limit, metric) for metric in METRICS))

    @property
    def packed(self) -> str:
        """As the scripts read it: "user:1 1=60 5=10000;"."""
        limits = (f" {metric}={limit}" for metric, limit in enumerate(self.limits, 1) if limit is not None)
        return f"{self.name}{''.join(limits)};"

    def says(self, metric: int, limit: int) -> str:
        """The limit of a metric, as a part of a sentence."""
        noun, span = _SAID[metric - 1]
        one_or_more = f"1 {noun} {span} is" if limit == 1 else f"{limit:,} {noun}s {span} are"
        return f"{one_or_more} allowed for {self.owner}"


def name_of(kind: str, pk: object) -> str:
    """What a "user", "team", "key" or "model" is called in the ledger."""
    return f"{kind}:{pk}"
