"""Which replica answers: healthy ones only, the least loaded first."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import structlog
from channels.db import database_sync_to_async
from django.db import DatabaseError, InterfaceError

from gateway.errors import ModelNotFound
from gateway.replica import Replica
from gateway.usage import record
from models_admin import demand, tasks
from models_admin.errors import NotServed
from models_admin.models import Instance, ServedModel
from models_admin.states import InstanceState, Shortage

# A replica that starts or restarts is worth waiting for; the pause between two looks is short beside a model's load.
_LOOK_EVERY_S = 0.2
# A replica that went away meanwhile is found out by asking it.
_LOOK_HOLDS_S = 0.1
# How long one looks for another replica than those that have just failed.
_AVOIDED_S = 0.4
# A large file on a slow disk; the reconciler gives up on a load that takes too long before we do.
_LOADING_PATIENCE_S = 600.0

log = structlog.get_logger(__name__)

# Requests this process has open on each replica. Other processes' requests are seen by llama-server's own queue.
_open_requests: Counter[UUID] = Counter()
_looks: dict[int, "asyncio.Future[_Look]"] = {}


@dataclass
class Ticket:
    """A place at a replica. `close()` gives it back and leaves the request's record."""

    served_pk: int
    avoid: frozenset[UUID]
    patience_s: float
    on_wait: Callable[[str], None]
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    slot: int | None = None
    completion_tokens: int = 0
    _replica: Replica | None = None

    @classmethod
    def none(cls) -> "Ticket":
        """What a request holds that was never admitted."""
        return cls(0, frozenset(), 0, lambda word: None)

    @property
    def replica(self) -> Replica:
        """Who answers."""
        assert self._replica is not None
        return self._replica

    async def move(self, *, lost: bool = False) -> None:
        """Go to another replica. Raises `NotServed`."""
        self._leave(lost)
        picked = await pick(
            self.served_pk, avoid=self.avoid, patience_s=self.patience_s, on_wait=self.on_wait
        )
        self._replica = Replica.of(picked)
        _open_requests[self._replica.pk] += 1

    async def close(self, row: bytes, prompt_tokens: int, completion_tokens: int) -> None:
        """Free the place and write the record. A record that can't be written must not cost an answer that was."""
        self._leave(lost=False)
        try:
            await database_sync_to_async(record.decode(row).save)(force_insert=True)
        except (DatabaseError, InterfaceError) as error:
            log.error("usage record lost", error=str(error))

    def _leave(self, lost: bool) -> None:
        if self._replica is None:
            return
        _open_requests[self._replica.pk] -= 1
        if _open_requests[self._replica.pk] <= 0:
            del _open_requests[self._replica.pk]
        if lost:
            self.avoid |= {self._replica.pk}
        self._replica = None


async def admit(
    served_pk: int, *, avoid: frozenset[UUID], patience_s: float, on_wait: Callable[[str], None]
) -> Ticket:
    """A place at the least loaded replica. Raises `NotServed` or `ModelNotFound`."""
    ticket = Ticket(served_pk, avoid, patience_s, on_wait)
    await ticket.move()
    return ticket


async def pick(
    served_pk: int,
    *,
    avoid: frozenset[UUID] = frozenset(),
    patience_s: float,
    on_wait: Callable[[str], None] = lambda word: None,
) -> Instance:
    """The ready replica with the fewest open requests, waiting up to `patience_s` for one that isn't there yet.

    A model that is loaded on demand is asked for; while it loads, patience is longer. Replicas in `avoid` have just
    failed the caller; one of them is taken only where there is no other. `on_wait` is told in words what is waited for,
    whenever that changes. Raises `NotServed` or `ModelNotFound`.
    """
    began = time.monotonic()
    told = ""
    while True:
        look = await _look(served_pk)
        waited = time.monotonic() - began
        # One of ours that has just failed may still count as ready; its successor may be a moment away.
        promising = any(one.pk not in avoid or one.served.external_id for one in look.ready)
        if look.ready and (promising or waited > _AVOIDED_S):
            return min(look.ready, key=lambda one: (one.pk in avoid, _open_requests[one.pk]))
        if refusal := look.refusal():
            raise refusal
        if waited >= (_LOADING_PATIENCE_S if look.is_loading else patience_s):
            raise look.impatience()
        if (word := look.word()) != told:
            on_wait(word)
            told = word
        await asyncio.sleep(_LOOK_EVERY_S)


@dataclass(frozen=True)
class _Look:
    """What runs of a model at a moment."""

    wanted: bool
    replicas: tuple[Instance, ...]

    @property
    def ready(self) -> list[Instance]:
        return [one for one in self.replicas if one.state == InstanceState.READY]

    @property
    def is_loading(self) -> bool:
        return any(one.state == InstanceState.STARTING for one in self.replicas)

    @property
    def is_out_of_reach(self) -> bool:
        states = {one.state for one in self.replicas}
        return states == {InstanceState.UNREACHABLE}

    def refusal(self) -> NotServed | None:
        """Why it is useless to wait."""
        if not self.wanted:
            return NotServed("The model isn't running. An administrator can start it on the Models page.")
        if self.replicas and all(one.state == InstanceState.FAILED for one in self.replicas):
            return NotServed(
                "The model failed to start. An administrator finds the reason on the Models page."
            )
        if self.replicas and all(one.cause == Shortage.TOO_LARGE for one in self.replicas):
            return NotServed("The model is too large for every machine that could run it.")
        return None

    def impatience(self) -> NotServed:
        """Why it was useless to wait so long."""
        if self.is_out_of_reach:
            return NotServed("The model's server doesn't answer; try again later.", retry_after=15)
        if any(one.cause == Shortage.NO_ROOM for one in self.replicas):
            return NotServed("All memory is in use by other models; try again in a moment.", retry_after=10)
        return NotServed("The model isn't ready yet; try again in a moment.", retry_after=5)

    def word(self) -> str:
        """What is waited for."""
        shares = [one.progress for one in self.replicas if one.state == InstanceState.STARTING]
        best = max((share for share in shares if share is not None), default=0)
        if best:
            return f"loading model {best} %"
        if self.is_out_of_reach:
            return "waiting for the model's server"
        if any(one.cause == Shortage.NO_ROOM for one in self.replicas):
            return "waiting for memory"
        return "loading model"


async def _look(served_pk: int) -> _Look:
    """What runs of a model. Requests that look at about the same moment share one look, however many wait."""
    look = _looks.get(served_pk)
    if look is None:
        look = _looks[served_pk] = asyncio.ensure_future(_look_now(served_pk))
        look.add_done_callback(partial(_forget_look, served_pk))
    return await asyncio.shield(look)


def _forget_look(served_pk: int, look: "asyncio.Future[_Look]") -> None:
    failed = look.cancelled() or look.exception() is not None
    asyncio.get_running_loop().call_later(0 if failed else _LOOK_HOLDS_S, _looks.pop, served_pk, None)


@database_sync_to_async
def _look_now(served_pk: int) -> _Look:
    served = ServedModel.objects.filter(pk=served_pk).first()
    if served is None:
        raise ModelNotFound
    replicas = tuple(
        Instance.objects.current().filter(served=served).select_related("node", "served__external")
    )
    # What runs elsewhere isn't loaded on demand, and is wanted only while its server is switched on.
    on_demand = served.enabled and served.external_id is None
    look = _Look(on_demand or served.desired_replicas > 0, replicas)
    if look.wanted and not look.ready and served.external_id is None:
        # Said again at each look: once nobody waits any more, it isn't loaded for nobody.
        demand.ask(served_pk)
        if not replicas:
            tasks.wake_all()
    return look
