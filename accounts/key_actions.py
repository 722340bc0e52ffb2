"""What people do with API keys."""

import secrets

from django.db import transaction
from django.utils import timezone

from accounts import audit, keys, version
from accounts.key_rights import KeyRights
from accounts.models import ApiKey, Team, User
from llamaproj.errors import InvalidInput, NotAllowed

_KEY_BYTES = 32
_SHOWN_CHARACTERS = 10
_NAME_MAX = 80


@transaction.atomic
def create_api_key(
    *,
    user: User,
    name: str,
    by: User | None,
    rights: KeyRights = KeyRights(),  # noqa: B008  # frozen
    within: ApiKey | None = None,
) -> tuple[ApiKey, str]:
    """A new key that acts as `user`. The second value is the key itself: it can't be shown again.

    `within` is the key that asks for it, where a program does. Raises `InvalidInput` and `NotAllowed`.
    """
    rights.check()
    if within is not None:
        rights.check_within(within)
    if rights.team is not None:
        _check_team(user, rights.team)
    if unknown := sorted(set(rights.model_slugs) - {slug for slug, _ in keys.models_for(user)}):
        raise InvalidInput(f"There is no model {unknown[0]!r} that the key could open.", param="model_slugs")
    key = f"{keys.PREFIX}{secrets.token_urlsafe(_KEY_BYTES)}"
    row = ApiKey.objects.create(
        user=user,
        name=_checked_name(name),
        prefix=key[:_SHOWN_CHARACTERS],
        digest=ApiKey.digest_of(key),
        team=rights.team,
        scopes=[scope for scope in ApiKey.Scope.values if scope in rights.scopes],
        model_slugs=sorted(set(rights.model_slugs)),
        priority=rights.priority,
        expires_at=rights.expires_at,
    )
    audit.record(by, "apikey.create", row, team=row.team, user=user.username, scopes=row.scopes)
    return row, key


@transaction.atomic
def rename_api_key(key: ApiKey, *, name: str, by: User | None) -> None:
    """Call it something else. Raises `InvalidInput`."""
    name = _checked_name(name)
    if ApiKey.objects.filter(pk=key.pk).exclude(name=name).update(name=name):
        audit.record(by, "apikey.rename", key, team=key.team, user=key.user.username, name=name)
        key.name = name


@transaction.atomic
def revoke_api_key(key: ApiKey, *, by: User | None) -> None:
    """Make the key worthless from now on, everywhere. Revoking twice is revoking once."""
    now = timezone.now()
    if ApiKey.objects.filter(pk=key.pk, revoked_at__isnull=True).update(revoked_at=now):
        key.revoked_at = now
        audit.record(by, "apikey.revoke", key, team=key.team, user=key.user.username)
        version.renew()


def _check_team(user: User, team: Team) -> None:
    if not team.memberships.filter(user=user).exists():
        # Not even that there is such a team is said to somebody who doesn't see it.
        if not Team.objects.visible_to(user).filter(pk=team.pk).exists():
            raise InvalidInput("There is no such team.", param="team")
        raise NotAllowed(
            f"{user.username} isn't in {team.name}: a team's key ends with its maker's membership.",
            param="team",
        )
    if not Team.objects.manageable_by(user).filter(pk=team.pk).exists():
        raise NotAllowed(f"Only owners and admins of {team.name} make keys of it.", param="team")


def _checked_name(name: str) -> str:
    name = name.strip()
    if not name or len(name) > _NAME_MAX or not name.isprintable():
        raise InvalidInput(f"Give the key a name of at most {_NAME_MAX} characters.", param="name")
    return name
