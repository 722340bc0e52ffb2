"""Replicas that fail are left alone for a while; what was lost goes on elsewhere; an emptied Valkey is told again."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async
from django_redis import get_redis_connection

from accounts import version
from accounts.models import User
from gateway import admission
from gateway.admission import Ask, scripts
from models_admin.models import Instance, ServedModel
from models_admin.states import InstanceState
from tests.serving import add_replica, serve

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async


@pytest.fixture
async def served() -> AsyncIterator[ServedModel]:
    """A model with two replicas of one slot."""
    found = await in_db(_serve)()
    yield found
    await admission.stop()


def _serve() -> ServedModel:
    served = serve("http://127.0.0.1:9", "key", slug="broken")
    add_replica(served, "http://127.0.0.1:10", "key")
    Instance.objects.filter(served=served).update(launched={"slots": 1, "context_tokens": 4096})
    version.renew(version.CATALOG)
    return served


@pytest.fixture
async def caller() -> admission.Caller:
    user = await in_db(User.objects.create_user)("ada")
    return await admission.caller_of_user(user.pk)


async def test_a_request_whose_replica_was_lost_goes_to_another(served, caller):
    ticket = await admission.admit(Ask(caller, served.slug))
    first = ticket.replica.pk

    await ticket.move(lost=True)

    assert ticket.replica.pk != first
    await ticket.close()


async def test_a_replica_that_fails_again_and_again_gets_nothing_for_a_while(served, caller):
    bad, failures = None, 0
    # Not longer than it takes: the breaker is open for half a second.
    while failures < 5:
        ticket = await admission.admit(Ask(caller, served.slug))
        bad = bad or ticket.replica.pk
        failures += ticket.replica.pk == bad
        await ticket.close(outcome="lost" if ticket.replica.pk == bad else "ok")

    tickets = [await admission.admit(Ask(caller, served.slug))]
    assert tickets[0].replica.pk != bad
    # The other one is full; this waits until the breaker is half open, and is the one that tries.
    tickets.append(await asyncio.wait_for(admission.admit(Ask(caller, served.slug)), 20))
    assert tickets[1].replica.pk == bad
    for ticket in tickets:
        await ticket.close(outcome="ok")
    assert not await in_db(get_redis_connection().exists)(f"{scripts.MEMORY}b:{bad}")


async def test_a_draining_replica_gets_nothing_new(served, caller):
    leaving = await Instance.objects.filter(served=served).afirst()
    await in_db(leaving.move_to)(InstanceState.DRAINING)

    ticket = await admission.admit(Ask(caller, served.slug))

    assert ticket.replica.pk != leaving.pk
    await ticket.close()


async def test_an_emptied_valkey_learns_what_runs_and_overbooks_nothing(served, caller):
    running = [await admission.admit(Ask(caller, served.slug)) for _ in range(2)]

    await in_db(_empty)()
    waiting = asyncio.create_task(admission.admit(Ask(caller, served.slug)))
    await asyncio.sleep(3)

    assert not waiting.done()
    await running[0].close()
    ticket = await asyncio.wait_for(waiting, 20)
    assert ticket.replica.pk == running[0].replica.pk
    await ticket.close()
    await running[1].close()


def _empty() -> None:
    valkey = get_redis_connection()
    for key in valkey.scan_iter(f"{scripts.MEMORY}*"):
        valkey.delete(key)
