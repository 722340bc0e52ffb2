"""Which replica answers: healthy ones only, the least loaded first."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from uuid import UUID

from channels.db import database_sync_to_async

from gateway.errors import ModelNotFound
from models_admin.errors import NotServed
from models_admin.models import Instance, ServedModel
from models_admin.states import InstanceState

# A replica that starts or restarts is worth waiting for; the pause between two looks is short beside a model's load.
_LOOK_EVERY_S = 0.2
# A replica that went away meanwhile is found out by asking it.
_LOOK_HOLDS_S = 0.1

# Requests this process has open on each replica. Other processes' requests are seen by llama-server's own queue.
_open_requests: Counter[UUID] = Counter()
_looks: dict[int, "asyncio.Future[tuple[list[Instance], bool]]"] = {}


async def pick(
    served_pk: int,
    *,
    avoid: frozenset[UUID] = frozenset(),
    patience_s: float,
    on_wait: Callable[[], None] = lambda: None,
) -> Instance:
    """The ready replica with the fewest open requests, waiting up to `patience_s` for one that is on its way.

    Replicas in `avoid` have just failed the caller; one of them is taken only where there is no other. `on_wait` is
    called once if there is something to wait for. Raises `NotServed` or `ModelNotFound`.
    """
    deadline = time.monotonic() + patience_s
    waited = False
    while True:
        replicas: list[Instance]
        replicas, wanted = await _look(served_pk)
        ready = [one for one in replicas if one.state == InstanceState.READY]
        if ready:
            return min(ready, key=lambda one: (one.pk in avoid, _open_requests[one.pk]))
        if not wanted:
            raise NotServed("The model isn't running. An administrator can start it on the Models page.")
        if replicas and all(one.state == InstanceState.FAILED for one in replicas):
            raise NotServed(
                "The model failed to start. An administrator finds the reason on the Models page."
            )
        if time.monotonic() >= deadline:
            raise NotServed("The model isn't ready yet; try again in a moment.", retry_after=5)
        if not waited:
            on_wait()
            waited = True
        await asyncio.sleep(_LOOK_EVERY_S)


async def _look(served_pk: int) -> tuple[list[Instance], bool]:
    """What runs of a model. Requests that look at about the same moment share one look, however many wait."""
    look = _looks.get(served_pk)
    if look is None:
        look = _looks[served_pk] = asyncio.ensure_future(_replicas(served_pk))
        look.add_done_callback(partial(_forget_look, served_pk))
    return await asyncio.shield(look)


def _forget_look(served_pk: int, look: "asyncio.Future[tuple[list[Instance], bool]]") -> None:
    failed = look.cancelled() or look.exception() is not None
    asyncio.get_running_loop().call_later(0 if failed else _LOOK_HOLDS_S, _looks.pop, served_pk, None)


@database_sync_to_async
def _replicas(served_pk: int) -> tuple[list[Instance], bool]:
    served = ServedModel.objects.filter(pk=served_pk).first()
    if served is None:
        raise ModelNotFound
    replicas = list(
        Instance.objects.current().filter(served=served).select_related("node", "served__external")
    )
    return replicas, served.desired_replicas > 0


@contextmanager
def occupied(instance: Instance) -> Iterator[None]:
    """Count one open request on a replica, for as long as the block runs."""
    _open_requests[instance.pk] += 1
    try:
        yield
    finally:
        _open_requests[instance.pk] -= 1
        if not _open_requests[instance.pk]:
            del _open_requests[instance.pk]
