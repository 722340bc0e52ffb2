"""What people do with accounts and keys."""

import secrets
from datetime import datetime

from django.db import transaction
from django.utils import timezone

from accounts import audit, version
from accounts.models import ApiKey, User

_KEY_BYTES = 32


@transaction.atomic
def ensure_first_admin(username: str, password: str) -> str | None:
    """Create the first administrator where there is none yet.

    Returns the password if one had to be generated (show it once), None otherwise.
    """
    if User.objects.filter(is_superuser=True).exists():
        return None
    generated = "" if password else secrets.token_urlsafe(12)
    user = User.objects.create_superuser(username, password=password or generated)
    audit.record(None, "user.create", user, superuser=True)
    return generated or None


@transaction.atomic
def create_api_key(
    *, user: User, name: str, by: User | None, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new key for `user`. The second value is the key itself: it can't be shown again."""
    key = f"sk-{secrets.token_urlsafe(_KEY_BYTES)}"
    row = ApiKey.objects.create(
        user=user, name=name, prefix=key[:10], digest=ApiKey.digest_of(key), expires_at=expires_at
    )
    audit.record(by, "apikey.create", row, user=user.username)
    return row, key


@transaction.atomic
def revoke_api_key(key: ApiKey, *, by: User | None) -> None:
    """Make the key worthless from now on. Revoking twice is revoking once."""
    if ApiKey.objects.filter(pk=key.pk, revoked_at__isnull=True).update(revoked_at=timezone.now()):
        version.renew()
        audit.record(by, "apikey.revoke", key, user=key.user.username)
