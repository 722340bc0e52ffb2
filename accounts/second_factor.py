"""The second factor of signing in: a code of an authenticator app, or one of the recovery codes.

allauth does the work. Ours is how secrets are kept, what the audit trail hears, and that administrators must have one
where REQUIRE_MFA says so.
"""

import base64
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from allauth.mfa.utils import is_mfa_enabled
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from channels.db import database_sync_to_async
from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect

from accounts import audit
from accounts.models import User
from llamaproj import env
from llamaproj.errors import NotAllowed
from llamaproj.rest import PROBLEM_TYPE, problem

_FIRST_SET_UP = "Set up a second factor first: open /accounts/2fa/ in a browser."
# What somebody needs to set one up, and to leave.
_OPEN = {
    "account_login",
    "account_logout",
    "account_reauthenticate",
    "mfa_activate_totp",
    "mfa_reauthenticate",
}
_OPEN_PATHS = ("/healthz", "/readyz", "/static/")


class SecondFactors(DefaultMFAAdapter):
    """Secrets are encrypted in the database."""

    def encrypt(self, text: str) -> str:
        """With a key derived from SECRET_KEY."""
        return _box().encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """Where SECRET_KEY has changed, another secret each time: no code fits, and an administrator resets it."""
        try:
            return _box().decrypt(encrypted_text.encode()).decode()
        except InvalidToken:
            return base64.b32encode(secrets.token_bytes(20)).decode()


def is_missing(user: User) -> bool:
    """Whether the person must set up a second factor before anything else."""
    return env.REQUIRE_MFA and user.is_staff and not is_mfa_enabled(user, [Authenticator.Type.TOTP])


@transaction.atomic
def reset(user: User, *, by: User) -> None:
    """Take somebody's second factor away, say after the phone was lost. Raises `NotAllowed`."""
    if not by.is_staff:
        raise NotAllowed("Only the portal's administrators may do this.")
    if Authenticator.objects.filter(user=user).delete()[0]:
        audit.record(by, "mfa.reset", user)


class Gate:
    """Administrators without a second factor get to the page that sets one up, and no further."""

    sync_capable = True
    async_capable = True

    def __init__(
        self,
        get_response: Callable[[HttpRequest], HttpResponseBase]
        | Callable[[HttpRequest], Awaitable[HttpResponseBase]],
    ) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Pass the request on; `process_view` does the work."""
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: object, args: object, kwargs: object
    ) -> HttpResponseBase | None:
        """Turn away who lacks a factor; who signs in with a key has no session and isn't asked."""
        if not env.REQUIRE_MFA or request.path.startswith(_OPEN_PATHS):
            return None
        name = request.resolver_match.url_name if request.resolver_match else None
        if name in _OPEN or not isinstance(request.user, User) or not is_missing(request.user):
            return None
        if request.path.startswith(("/api/", "/v1/")):
            error = NotAllowed(_FIRST_SET_UP)
            return JsonResponse(problem(error), status=error.status, content_type=PROBLEM_TYPE)
        return redirect("mfa_activate_totp")


class SocketGate:
    """The same for sockets, which pass no middleware of Django's."""

    def __init__(self, application: Callable[[dict[str, Any], Any, Any], Awaitable[None]]) -> None:
        self._application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve one socket, or close it before it opens."""
        user = scope["user"]
        if env.REQUIRE_MFA and user.is_authenticated and await database_sync_to_async(is_missing)(user):
            await receive()
            await send({"type": "websocket.close", "code": 4403})
            return
        await self._application(scope, receive, send)


def _box() -> Fernet:
    # A hash is enough of a derivation: SECRET_KEY is long and random, not a password.
    digest = hashlib.sha256(b"accounts.second_factor:" + settings.SECRET_KEY.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(digest))
