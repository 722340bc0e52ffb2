"""Limits: exact across processes, reserved before and settled after, and said in words a person can act on."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator

import pytest
from channels.db import database_sync_to_async
from django_redis import get_redis_connection

from accounts import version
from accounts.models import Membership, Team, User
from gateway import admission
from gateway.admission import Ask, callers, catalog, scripts
from gateway.admission.gate import gate
from gateway.errors import LimitReached
from gateway.models import Limit, UsageRecord
from models_admin.models import Instance, ServedModel
from models_admin.states import InstanceState
from tests.serving import serve

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async
PROCESSES, ASKED, ALLOWED = 4, 1000, 100


@pytest.fixture
async def served() -> AsyncIterator[ServedModel]:
    found = await in_db(_serve)()
    yield found
    await admission.stop()


def _serve() -> ServedModel:
    served = serve("http://127.0.0.1:9", "key", slug="limited")
    Instance.objects.filter(served=served).update(launched={"slots": 128, "context_tokens": 4096})
    version.renew(version.CATALOG)
    return served


@in_db
def limit(**fields: object) -> Limit:
    found = Limit.objects.create(**fields)
    version.renew()
    return found


@pytest.fixture
async def ada() -> User:
    return await in_db(User.objects.create_user)("ada")


async def admit(user: User, served: ServedModel, **more: object) -> admission.Ticket:
    return await admission.admit(Ask(await admission.caller_of_user(user.pk), served.slug, **more))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_of_a_thousand_at_once_from_four_processes_exactly_a_hundred_are_let_in(served, ada):
    await limit(user=ada, requests_per_minute=ALLOWED)
    # What the processes remember they have from here: none of them asks Postgres.
    await gate().read_versions()
    caller = await admission.caller_of_user(ada.pk)
    await callers.right(caller, served.slug)
    model = await catalog.read(served.pk, gate().catalog)
    await gate().run(scripts.REPLICAS, served.pk, gate().catalog, model.places())
    context = multiprocessing.get_context("fork")
    counts = context.Queue()
    processes = [context.Process(target=_flood, args=(caller, counts)) for _ in range(PROCESSES)]

    for process in processes:
        process.start()
    found = [await asyncio.to_thread(counts.get, timeout=60) for _ in processes]
    for process in processes:
        await asyncio.to_thread(process.join, 10)

    assert sum(let_in for let_in, _ in found) == ALLOWED
    assert sum(refused for _, refused in found) == ASKED - ALLOWED


def _flood(caller: admission.Caller, counts: "multiprocessing.Queue[tuple[int, int]]") -> None:
    async def one() -> bool:
        try:
            ticket = await admission.admit(Ask(caller, "limited"))
        except LimitReached:
            return False
        await ticket.close()
        return True

    async def all_at_once() -> list[bool]:
        found = await asyncio.gather(*(one() for _ in range(ASKED // PROCESSES)))
        await admission.stop()
        return found

    found = asyncio.run(all_at_once())
    counts.put((sum(found), len(found) - sum(found)))


async def test_a_refusal_says_which_limit_of_whom_and_when_there_is_room(served, ada):
    await limit(user=ada, requests_per_minute=1)
    await (await admit(ada, served)).close()

    with pytest.raises(LimitReached) as refused:
        await admit(ada, served)

    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.message.startswith(
        "At most 1 request a minute is allowed for you; there is room again in"
    )
    assert 55 < (refused.value.retry_after or 0) <= 61


async def test_what_was_promised_and_not_used_is_given_back(served, ada):
    await limit(user=ada, completion_tokens_per_minute=1000)
    ticket = await admit(ada, served, completion_tokens=900)
    with pytest.raises(LimitReached):
        await admit(ada, served, completion_tokens=200)

    await ticket.close(b"", 10, 50, outcome="ok")
    second = await admit(ada, served, completion_tokens=900)
    await second.close()

    use = await in_db(admission.use_of)([("user", ada.pk)])
    assert use[0].completion_tokens_per_minute == 50
    assert use[0].requests_per_minute is None


async def test_who_has_little_left_can_begin_an_answer_of_unsaid_length_or_ask_for_a_shorter_one(served, ada):
    await limit(user=ada, completion_tokens_per_day=600, completion_tokens_per_minute=5000)
    await (await admit(ada, served, completion_tokens=500)).close(b"", 10, 500, outcome="ok")

    with pytest.raises(
        LimitReached, match=r"shorter answer .*, 100 are left; there is room again in 2[34] h"
    ):
        await admit(ada, served, completion_tokens=101)
    ticket = await admit(ada, served)
    with pytest.raises(LimitReached, match=r"allowed for you; there is room again in 2[34] h"):
        # What is left was promised to the answer before.
        await admit(ada, served)

    await ticket.close(b"", 10, 20, outcome="ok")
    use = await in_db(admission.use_of)([("user", ada.pk)])
    assert use[0].completion_tokens_per_day == 520
    await (await admit(ada, served, completion_tokens=80)).close(b"", 10, 80, outcome="ok")
    with pytest.raises(LimitReached):
        await admit(ada, served)


async def test_a_request_that_asks_for_more_than_ever_fits_is_told_so(served, ada):
    await limit(user=ada, completion_tokens_per_minute=100)

    with pytest.raises(LimitReached, match="lower max_tokens"):
        await admit(ada, served, completion_tokens=101)


async def test_an_emptied_valkey_gives_nobody_a_new_day(served, ada):
    await limit(user=ada, completion_tokens_per_day=1000)
    await in_db(UsageRecord.objects.create)(
        user=ada, served=served, model_slug="limited", door="api", finish="stop", completion_tokens=990
    )
    await in_db(get_redis_connection().delete)(f"{scripts.MEMORY}l:user:{ada.pk}")

    with pytest.raises(LimitReached) as refused:
        await admit(ada, served, completion_tokens=20)

    assert refused.value.code == "insufficient_quota"
    assert (refused.value.retry_after or 0) > 23 * 3600


async def test_a_day_is_whole_again_though_what_runs_was_said_first(served, ada):
    await limit(user=ada, completion_tokens_per_day=1000)
    await in_db(UsageRecord.objects.create)(
        user=ada, served=served, model_slug="limited", door="api", finish="stop", completion_tokens=980
    )
    running = await admit(ada, served, completion_tokens=5)
    await in_db(forget_everything)()

    with pytest.raises(LimitReached):
        await admit(ada, served, completion_tokens=100)

    use = await in_db(admission.use_of)([("user", ada.pk)])
    assert use[0].completion_tokens_per_day == 985
    await running.close(completion_tokens=2)
    use = await in_db(admission.use_of)([("user", ada.pk)])
    assert use[0].completion_tokens_per_day == 982


def forget_everything() -> None:
    valkey = get_redis_connection()
    valkey.delete(*valkey.scan_iter(f"{scripts.MEMORY}*"))


async def test_so_many_at_the_same_time_and_no_more(served, ada):
    await limit(served=served, concurrent_requests=1)
    ticket = await admit(ada, served)

    with pytest.raises(LimitReached, match="for the model limited"):
        await admit(ada, served)
    await ticket.close()
    await (await admit(ada, served)).close()


async def test_who_waits_for_a_model_to_load_uses_nothing_up(served, ada):
    await in_db(Instance.objects.filter(served=served).update)(state=InstanceState.STARTING)
    await limit(user=ada, requests_per_minute=3)
    waiting = asyncio.create_task(admit(ada, served, light=True))
    await asyncio.sleep(1)

    use = await in_db(admission.use_of)([("user", ada.pk)])
    assert use[0].requests_per_minute in {None, 0}
    await in_db(Instance.objects.filter(served=served).update)(state=InstanceState.READY)
    await in_db(version.renew)(version.CATALOG)
    await (await asyncio.wait_for(waiting, 10)).close()
    use = await in_db(admission.use_of)([("user", ada.pk)])
    assert use[0].requests_per_minute == 1


async def test_everybodys_limit_holds_for_each_until_somebody_has_their_own(served, ada):
    bob = await in_db(User.objects.create_user)("bob")
    await limit(requests_per_minute=1)
    await (await admit(ada, served)).close()
    await (await admit(bob, served)).close()
    with pytest.raises(LimitReached):
        await admit(ada, served)

    await limit(user=ada, requests_per_minute=2)

    await (await admit(ada, served)).close()


async def test_members_share_the_limit_of_the_team_that_opens_the_model(served, ada):
    bob = await in_db(User.objects.create_user)("bob")
    team = await in_db(Team.objects.create)(name="red")
    for user in (ada, bob):
        await in_db(Membership.objects.create)(team=team, user=user)
    await in_db(served.teams.add)(team)
    await limit(team=team, requests_per_minute=1)
    ticket = await admit(ada, served)

    with pytest.raises(LimitReached, match="the team red"):
        await admit(bob, served)

    assert (b"x-ratelimit-remaining-requests", b"0") in ticket.headers
    await ticket.close()
