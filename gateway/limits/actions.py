"""What administrators do about limits. A change holds from the next request on, in every process."""

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts import audit, version
from accounts.models import ApiKey, Team, User
from gateway.admission.subjects import METRICS
from gateway.limits.subjects import Subject, subject_of
from gateway.models import Limit
from llamaproj.errors import Conflict, InvalidInput
from models_admin.models import ServedModel

NUMBERS = (*METRICS, "context_tokens")


@transaction.atomic
def add_limit(subject: Subject, *, by: User | None, **numbers: int | None) -> Limit:
    """Limit somebody or something that has no limit yet. Raises `Conflict` and `InvalidInput`."""
    limit = Limit(**{field: value for field, value in _fields(subject).items() if value is not None})
    try:
        with transaction.atomic():
            return _save(limit, by, "limit.add", numbers)
    except IntegrityError:
        raise Conflict("There is a limit for this already: change that one.", param="subject") from None


@transaction.atomic
def change_limit(limit: Limit, *, by: User | None, **numbers: int | None) -> Limit:
    """Set the numbers that are given; None is no limit. Raises `InvalidInput`."""
    limit = Limit.objects.select_for_update().get(pk=limit.pk)
    changed = {name: value for name, value in numbers.items() if getattr(limit, name) != value}
    return _save(limit, by, "limit.change", changed) if changed else limit


@transaction.atomic
def remove_limit(limit: Limit, *, by: User | None) -> None:
    """Let everything through again; for a person what holds for everybody."""
    subject = subject_of(limit)
    audit.record(by, "limit.remove", str(limit), team=subject if isinstance(subject, Team) else None)
    limit.delete()
    version.renew()


def _fields(subject: Subject) -> dict[str, Subject]:
    return {
        field: subject if isinstance(subject, kind) else None
        for field, kind in {"user": User, "team": Team, "api_key": ApiKey, "served": ServedModel}.items()
    }


def _save(limit: Limit, by: User | None, verb: str, numbers: dict[str, int | None]) -> Limit:
    for name, value in numbers.items():
        setattr(limit, name, value)
    limit.changed_at = timezone.now()
    try:
        limit.clean_fields()
    except ValidationError as error:
        param, [sentence, *_] = next(iter(error.message_dict.items()))
        raise InvalidInput(sentence, param=param) from None
    limit.save()
    subject = subject_of(limit)
    audit.record(by, verb, str(limit), team=subject if isinstance(subject, Team) else None, **numbers)
    version.renew()
    return limit
