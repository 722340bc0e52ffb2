"""Sockets end with the session in which they were opened, a second or two after it.

A page shows its session with every request, a socket only when it opens. So each process looks once a second, for all
its sockets together, whether their sessions and their people's passwords are still the same.
"""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from channels.db import database_sync_to_async
from django.contrib.sessions.models import Session
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from accounts.models import User

SIGNED_OUT = 4401
_EVERY_S = 1.0

log = structlog.get_logger(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]


class OpenSocket:
    """A socket of somebody who is signed in. What is sent over it after its end is dropped."""

    def __init__(self, session_key: str, user: User, send: Send) -> None:
        self.session_key = session_key
        self.user_pk = user.pk
        self.password = user.password
        self.signed_out = asyncio.Event()
        self._send = send
        self._is_over = False

    async def send(self, message: dict[str, Any]) -> None:
        """Pass on what the application sends."""
        if not self._is_over:
            self._is_over = message["type"] == "websocket.close"
            await self._send(message)

    async def end_when_signed_out(self) -> None:
        """Close it when its time has come; a client that doesn't answer keeps nobody else waiting."""
        await self.signed_out.wait()
        await self.send({"type": "websocket.close", "code": SIGNED_OUT})


class Watch:
    """The sockets of one event loop. It looks after them while there are any."""

    def __init__(self) -> None:
        self._sockets: set[OpenSocket] = set()
        self._looking: asyncio.Task[None] | None = None

    def add(self, socket: OpenSocket) -> None:
        """Look after one more."""
        self._sockets.add(socket)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_on(), name="session-watch")

    async def remove(self, socket: OpenSocket) -> None:
        """It is closed."""
        self._sockets.discard(socket)
        if not self._sockets and self._looking is not None:
            looking, self._looking = self._looking, None
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            sockets = list(self._sockets)
            try:
                sessions, passwords = await _living(
                    {one.session_key for one in sockets}, {one.user_pk for one in sockets}
                )
            except (DatabaseError, InterfaceError) as error:
                log.warning("whether sockets' sessions go on can't be seen", error=str(error))
                continue
            for one in sockets:
                if one.session_key not in sessions or passwords.get(one.user_pk) != one.password:
                    one.signed_out.set()


@database_sync_to_async
def _living(keys: set[str], users: set[int]) -> tuple[set[str], dict[int, str]]:
    """Which of these sessions go on, and the passwords' digests of those of these people who may sign in."""
    sessions = Session.objects.filter(session_key__in=keys, expire_date__gt=timezone.now())
    people = User.objects.filter(pk__in=users, is_active=True)
    return set(sessions.values_list("session_key", flat=True)), dict(people.values_list("pk", "password"))


_watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Watch] = weakref.WeakKeyDictionary()


class SessionGate:
    """Lets sockets through as long as their session lasts; who isn't signed in is the consumers' business."""

    def __init__(self, application: Callable[[dict[str, Any], Any, Any], Awaitable[None]]) -> None:
        self._application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Serve one socket."""
        user, key = scope["user"], scope["session"].session_key
        if not user.is_authenticated or key is None:
            await self._application(scope, receive, send)
            return
        socket = OpenSocket(key, user, send)
        watch = _watches.setdefault(asyncio.get_running_loop(), Watch())
        watch.add(socket)
        end = asyncio.create_task(socket.end_when_signed_out(), name="socket-end")
        try:
            await self._application(scope, receive, socket.send)
        finally:
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)
            await watch.remove(socket)
