"""Whom a limit is for: a person, team, key or model, or each person nobody has said more of."""

from accounts.models import ApiKey, Team, User
from gateway.models import Limit
from models_admin.models import ServedModel

Subject = User | Team | ApiKey | ServedModel | None

# A limit's field for each kind, in the words of pages, addresses and the ledger.
FIELDS = {"user": "user", "team": "team", "key": "api_key", "model": "served"}
KINDS = {"user": "person", "team": "team", "key": "API key", "model": "model"}


def kind_of(limit: Limit) -> str:
    """ "user", "team", "key" or "model"; empty for the limit of everybody."""
    return next((kind for kind, field in FIELDS.items() if getattr(limit, f"{field}_id") is not None), "")


def subject_of(limit: Limit) -> Subject:
    """Whose limit it is."""
    return limit.user or limit.team or limit.api_key or limit.served


def called(subject: Subject) -> str:
    """What a person calls it."""
    match subject:
        case None:
            return "everybody without a limit of their own"
        case User():
            return subject.display_name
        case ServedModel():
            return subject.slug
        case _:
            return str(subject)
