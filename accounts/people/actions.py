"""What is done with people's accounts: each verb one transaction with its audit row.

The portal never loses its last administrator, and nobody shuts themselves out.
"""

from typing import Any

from allauth.account.models import EmailAddress
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import transaction

from accounts import audit, version
from accounts.models import User
from llamaproj.errors import Conflict, InvalidInput


@transaction.atomic
def add(*, by: User | None, username: str, password: str = "", **fields: Any) -> User:
    """A new person; without a password one who can't sign in until there is one.

    Raises `Conflict` for a name or an address that is taken, `InvalidInput` for a password that is too easy.
    """
    person = User(username=username, **fields)
    _check_unique(person)
    _set_password(person, password)
    _check_fields(person, ["username", *fields])
    person.save(force_insert=True)
    audit.record(by, "user.create", person)
    version.renew()
    return person


@transaction.atomic
def change(person: User, *, by: User | None, password: str | None = None, **fields: Any) -> User:
    """Set fields, and a new password, which ends the person's sessions. Raises what `add` raises.

    Also `Conflict` where the portal would lose its last administrator, or administrators shut themselves out.
    """
    person = _locked(person)
    old_email = person.email
    changed = sorted(name for name, value in fields.items() if getattr(person, name) != value)
    for name in changed:
        setattr(person, name, fields[name])
    if {"is_active", "is_staff"} & set(changed):
        _check_administrators(person, by)
    _check_unique(person)
    if password is not None:
        _set_password(person, password)
        changed.append("password")
    if not changed:
        return person
    _check_fields(person, changed)
    person.save(update_fields=changed)
    if person.email != old_email:
        # What somebody proved of an old address is no proof of the new one.
        EmailAddress.objects.filter(user=person).exclude(email__iexact=person.email).delete()
    audit.record(by, "user.change", person, fields=changed)
    version.renew()
    return person


@transaction.atomic
def remove(person: User, *, by: User | None) -> None:
    """Remove a person, with conversations and keys; usage stays counted. Raises `Conflict` for an active one."""
    person = _locked(person)
    if person.is_active:
        raise Conflict(
            f"{person.username} can still sign in. Deactivate the account first; removing it takes conversations and "
            "keys along."
        )
    audit.record(by, "user.delete", person)
    person.delete()
    version.renew()


def _locked(person: User) -> User:
    """The row, and those of all administrators: of two who remove each other only the first succeeds."""
    rows = User.objects.select_for_update().order_by("pk")
    administrators = list(rows.filter(is_staff=True, is_active=True))
    return next((one for one in administrators if one.pk == person.pk), None) or rows.get(pk=person.pk)


def _check_administrators(person: User, by: User | None) -> None:
    """Raise `Conflict` where `person`, as about to be saved, leaves too few."""
    if person.is_active and person.is_staff:
        return
    was = User.objects.get(pk=person.pk)
    if by is not None and by.pk == person.pk:
        raise Conflict("Nobody shuts themselves out; ask another administrator.")
    others = User.objects.filter(is_staff=True, is_active=True).exclude(pk=person.pk)
    if was.is_active and was.is_staff and not others.exists():
        raise Conflict(f"{person.username} is the last administrator.")


def _check_unique(person: User) -> None:
    others = User.objects.exclude(pk=person.pk)
    if others.filter(username__iexact=person.username).exists():
        raise Conflict("Somebody has this name already.", param="username")
    if person.email and others.filter(email__iexact=person.email).exists():
        raise Conflict("Somebody has this address already.", param="email")


def _check_fields(person: User, names: list[str]) -> None:
    person.clean_fields(exclude={field.name for field in User._meta.fields} - set(names))


def _set_password(person: User, password: str) -> None:
    if password:
        try:
            validate_password(password, person)
        except ValidationError as error:
            raise InvalidInput(" ".join(error.messages), param="password") from None
        person.set_password(password)
    else:
        person.set_unusable_password()
