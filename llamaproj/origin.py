"""Which pages may open a socket: the portal's own."""

from collections.abc import Awaitable, Callable
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.http.request import split_domain_port, validate_host

Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class _Refused(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.close()


class SameOrigin:
    """Passes on sockets of pages from this very host and port, or from CSRF_TRUSTED_ORIGINS; refuses all others.

    Cookies don't know ports: without this another service on the same machine could use a person's session.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self._refused: Application = _Refused.as_asgi()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve one socket."""
        allowed = may_connect(dict(scope["headers"]))
        await (self._application if allowed else self._refused)(scope, receive, send)


def may_connect(headers: dict[bytes, bytes]) -> bool:
    """Whether a handshake with these headers comes from a page of the portal.

    A browser always sends an Origin; a program that sends none has no cookies of somebody else's either.
    """
    origin = headers.get(b"origin", b"").decode("latin-1")
    host = headers.get(b"host", b"").decode("latin-1")
    if not origin:
        return True
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    name, _ = split_domain_port(host)
    return validate_host(name, settings.ALLOWED_HOSTS) and origin.partition("://")[2] == host
