"""Giving, renewing and ending tokens."""

from dataclasses import dataclass

from allauth.account.adapter import get_adapter
from allauth.mfa.base.forms import AuthenticateForm
from allauth.mfa.utils import is_mfa_enabled
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.settings import api_settings
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken
from rest_framework_simplejwt.tokens import RefreshToken
from rest_framework_simplejwt.utils import get_md5_hash_password

from accounts import second_factor
from accounts.models import User
from llamaproj.errors import NotAllowed, NotAuthenticated, TooManyRequests

# As long as the login page's limit on failures counts.
_GUESSED_TOO_OFTEN_S = 300


@dataclass(frozen=True)
class Tokens:
    """What a program keeps."""

    access: str
    refresh: str
    expires_in: int

    @classmethod
    def of(cls, refresh: RefreshToken) -> "Tokens":
        """The one to renew with, and a fresh one for requests."""
        lifetime = api_settings.ACCESS_TOKEN_LIFETIME
        return cls(str(refresh.access_token), str(refresh), int(lifetime.total_seconds()))


class SecondFactorNeeded(NotAuthenticated):
    """Send the code of your second factor, too: as `code`."""

    code = "second_factor_needed"


def sign_in(request: HttpRequest, *, username: str, password: str, code: str = "") -> Tokens:
    """Tokens for whoever knows the password and, where the person has a second factor, its code.

    Failures count together with those of the login page. Raises `NotAuthenticated`, `NotAllowed` for administrators who
    must set up a second factor first, and `TooManyRequests` for guessing.
    """
    try:
        user = get_adapter().authenticate(request, username=username, password=password)
    except ValidationError as error:
        raise TooManyRequests(" ".join(error.messages), retry_after=_GUESSED_TOO_OFTEN_S) from None
    if not isinstance(user, User) or not user.is_active:
        raise NotAuthenticated("Username or password is wrong.")
    if second_factor.is_missing(user):
        raise NotAllowed("Administrators need a second factor here: set one up at /accounts/2fa/ first.")
    if is_mfa_enabled(user):
        _check_code(user, code)
    return Tokens.of(RefreshToken.for_user(user))


@transaction.atomic
def renew(text: str) -> Tokens:
    """New tokens for a refresh token, which ends with this. Raises `NotAuthenticated`."""
    old = _read(text)
    user = User.objects.filter(pk=old.get(api_settings.USER_ID_CLAIM), is_active=True).first()
    if user is None or old.get(api_settings.REVOKE_TOKEN_CLAIM) != get_md5_hash_password(user.password):
        raise NotAuthenticated("The account was closed, or its password changed: sign in again.")
    old.blacklist()
    return Tokens.of(RefreshToken.for_user(user))


@transaction.atomic
def revoke(text: str) -> None:
    """End a refresh token. Raises `NotAuthenticated` for one that has ended already."""
    _read(text).blacklist()


@transaction.atomic
def revoke_all(user: User) -> int:
    """End every refresh token of a person. Returns how many that were."""
    found = [BlacklistedToken(token=token) for token in living(user)]
    BlacklistedToken.objects.bulk_create(found, ignore_conflicts=True)
    return len(found)


def living(user: User) -> QuerySet[OutstandingToken]:
    """The person's refresh tokens that still renew."""
    found: QuerySet[OutstandingToken] = OutstandingToken.objects.filter(
        user=user, expires_at__gt=timezone.now(), blacklistedtoken__isnull=True
    )
    return found


def _check_code(user: User, code: str) -> None:
    if not code:
        raise SecondFactorNeeded(param="code")
    form = AuthenticateForm({"code": code}, user=user)
    if not form.is_valid():
        if form.has_error("code", "too_many_login_attempts"):
            raise TooManyRequests(form.errors["code"][0], retry_after=_GUESSED_TOO_OFTEN_S)
        raise NotAuthenticated("The code is wrong, or was used already.", param="code")
    form.authenticator.record_usage()


def _read(text: str) -> RefreshToken:
    """The token, held until the transaction ends: of two who renew with the same one, one is refused."""
    try:
        token = RefreshToken(text)
        if not OutstandingToken.objects.select_for_update().filter(jti=token["jti"]).exists():
            raise TokenError("unknown")
        token.check_blacklist()
    except TokenError:
        raise NotAuthenticated("This refresh token isn't valid, or has ended: sign in again.") from None
    return token
