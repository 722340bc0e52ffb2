"""How programs prove to the REST API who they are; people's sessions do as well."""

from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.exceptions import AuthenticationFailed
from rest_framework_simplejwt.tokens import Token

from accounts import keys
from accounts.models import ApiKey, User
from llamaproj.errors import NotAllowed, NotAuthenticated


def key_of(request: Request) -> ApiKey | None:
    """The key with which a program asks; None for a session or a token."""
    return request.auth if isinstance(request.auth, ApiKey) else None


def inference_key_of(request: Request) -> ApiKey | None:
    """The same where a model is to be used. Raises `NotAllowed` for a key that was made for something else."""
    key = key_of(request)
    if key is not None:
        _demand(key, ApiKey.Scope.INFERENCE)
    return key


def _demand(key: ApiKey, scope: ApiKey.Scope) -> None:
    if scope not in key.scopes:
        raise NotAllowed(f"This key lacks the scope {scope.value}: make one that has it in your settings.")


class ApiKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer sk-…`. Without such a header the next way of authentication is tried.

    What a key may do is checked here and not by a permission class: a view that brings permissions of its own would
    lose that one.
    """

    def authenticate(self, request: Request) -> tuple[User, ApiKey] | None:
        """The key's owner and the key. Raises `NotAuthenticated`, and `NotAllowed` for a key without the scope."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not token.strip().startswith(keys.PREFIX):
            return None
        key = keys.authenticate(f"{scheme} {token}")
        _demand(key, ApiKey.Scope.READ if request.method in SAFE_METHODS else ApiKey.Scope.WRITE)
        keys.used_now(key)
        return key.user, key

    def authenticate_header(self, request: Request) -> str:
        """What the answer 401 asks for."""
        return "Bearer"


class TokenAuthentication(JWTAuthentication):
    """`Authorization: Bearer eyJ…`, a token of `auth/token/`: it acts as the person in everything."""

    def authenticate(self, request: Request) -> tuple[User, Token] | None:
        """The person and the token. Raises `NotAuthenticated`."""
        try:
            found: tuple[User, Token] | None = super().authenticate(request)
        except AuthenticationFailed:
            raise NotAuthenticated(
                "This token isn't valid or has ended: get a new one at /api/v1/auth/token/refresh/."
            ) from None
        return found
