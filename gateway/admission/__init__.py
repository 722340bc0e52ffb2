"""Admission: who may, how much, in what order, on which replica. One round trip to Valkey where nothing has to wait."""

from uuid import UUID

from channels.db import database_sync_to_async

from gateway.admission import callers, catalog
from gateway.admission.callers import Caller
from gateway.admission.gate import gate, stop
from gateway.admission.ledger import Use, use_of, used_in_a_day
from gateway.admission.tickets import Ask, Ticket, Waiting, admit, leave
from models_admin.models import ServedModel

__all__ = [
    "Ask",
    "Caller",
    "Ticket",
    "Use",
    "Waiting",
    "admit",
    "caller_of",
    "caller_of_key",
    "caller_of_user",
    "forget",
    "leave",
    "models_of",
    "start",
    "stop",
    "use_of",
    "used_in_a_day",
]


async def caller_of(authorization: str, *, fresh: bool = False) -> Caller:
    """The holder of the key in an `Authorization` header. Raises `NotAuthenticated`.

    `admit` finds out by itself what has changed since the caller was last looked at; who asks for something else says
    `fresh`.
    """
    if fresh:
        await gate().read_versions()
    return await callers.caller_of(authorization, gate().rights)


async def caller_of_key(pk: UUID) -> Caller:
    """The holder of a key that was shown before. Raises `NotAuthenticated` for one that isn't valid any more."""
    return await callers.caller_of_key(pk, gate().rights)


async def caller_of_user(user_pk: int) -> Caller:
    """A person in the chat. Raises `NotAuthenticated` for one who may not sign in any more."""
    return await callers.caller_of_user(user_pk, gate().rights)


@database_sync_to_async
def models_of(caller: Caller) -> list[ServedModel]:
    """The models the caller may use and that answer, now or once they are loaded."""
    return list(callers.usable_models(caller).wanted())


def start() -> None:
    """Take a place at the gate: the heartbeat begins. The first request does so, too."""
    gate().start()


def forget() -> None:
    """Remember no caller and no model: everything is read anew."""
    callers.forget()
    catalog.forget()
