"""Who holds this API key?"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import UUID

from django.apps import apps
from django.db.models import Case, DateTimeField, Q, Value, When
from django.utils import timezone

from accounts.models import ApiKey, User
from llamaproj.errors import NotAuthenticated

# Every key begins like this; no other token does.
PREFIX = "sk-"
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
    return found


def used(at_by_key: Mapping[UUID, datetime]) -> int:
    """Note when keys were last used: one write for all, each at most once a minute. Returns how many changed."""
    old = Q()
    for pk, at in at_by_key.items():
        old |= Q(pk=pk) & (Q(last_used_at__isnull=True) | Q(last_used_at__lt=at - _LAST_USED_PRECISION))
    if not old:
        return 0
    moments = [When(pk=pk, then=Value(at, DateTimeField())) for pk, at in at_by_key.items()]
    return ApiKey.objects.filter(old).update(last_used_at=Case(*moments))


def used_now(key: ApiKey) -> None:
    """Note that the key is used, unless that was noted within the last minute."""
    now = timezone.now()
    if key.last_used_at is None or now - key.last_used_at > _LAST_USED_PRECISION:
        used({key.pk: now})


def models_for(user: User) -> list[tuple[str, str]]:
    """Short names and names of the models that a key of `user` may be confined to.

    Models live a floor above; they are asked for by their name, as Django's own relations do.
    """
    served = apps.get_model("models_admin", "ServedModel")
    return list(served._default_manager.visible_to(user).order_by("name").values_list("slug", "name"))
