"""What people do with accounts."""

import secrets

from django.db import transaction
from django.db.models import Q

from accounts import audit
from accounts.models import User


@transaction.atomic
def ensure_first_admin(username: str, password: str) -> str | None:
    """Create the first administrator where there is none yet, of whatever making: one who was removed stays removed.

    Returns the password if one had to be generated (show it once), None otherwise.
    """
    if User.objects.filter(Q(is_staff=True) | Q(is_superuser=True)).exists():
        return None
    generated = "" if password else secrets.token_urlsafe(12)
    user = User.objects.create_superuser(username, password=password or generated)
    audit.record(None, "user.create", user, superuser=True)
    return generated or None
