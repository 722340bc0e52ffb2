"""Who holds this API key?"""

from datetime import timedelta

from django.utils import timezone

from accounts.models import ApiKey
from llamaproj.errors import NotAuthenticated

# "Last used" is for people; more precision would cost a write a request.
_LAST_USED_PRECISION = timedelta(minutes=1)


def authenticate(authorization: str) -> ApiKey:
    """The usable key of an `Authorization: Bearer sk-…` header. Raises `NotAuthenticated`."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise NotAuthenticated("Send an API key: Authorization: Bearer sk-…")
    found = (
        ApiKey.objects.usable().select_related("user").filter(digest=ApiKey.digest_of(key.strip())).first()
    )
    if found is None:
        raise NotAuthenticated("This API key isn't valid, or was revoked, or has expired.")
    now = timezone.now()
    if found.last_used_at is None or now - found.last_used_at > _LAST_USED_PRECISION:
        ApiKey.objects.filter(pk=found.pk).update(last_used_at=now)
    return found
