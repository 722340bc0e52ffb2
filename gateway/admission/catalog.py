"""What serves a model, remembered under the catalog's version: a request asks Postgres only after a change."""

import asyncio
import time
from dataclasses import dataclass
from uuid import UUID

import orjson
from channels.db import database_sync_to_async

from gateway.admission.readings import shared
from gateway.errors import ModelNotFound
from gateway.replica import Replica
from models_admin import demand, tasks
from models_admin.engine import launch_config
from models_admin.errors import NotServed
from models_admin.models import Instance, ServedModel
from models_admin.states import InstanceState, Shortage

# Requests an external server is sent at the same time; it has a queue of its own.
EXTERNAL_REQUESTS = 64
# A replica of which nobody wrote down how it was launched: as many as it has by default, and it chooses the slots.
_UNKNOWN_SLOTS = 4
# Changes are announced; what an announcement missed is seen after so long.
KEEP_S = 60.0


@dataclass(frozen=True, slots=True)
class Standing:
    """An instance that isn't ready: what there is to say of it to somebody who waits."""

    state: InstanceState
    cause: str
    progress: int | None


@dataclass(frozen=True, slots=True)
class Model:
    """A model at a moment: what can answer, and what stands in the way."""

    pk: int
    slug: str
    is_external: bool
    context_tokens: int
    wanted: bool
    ready: dict[UUID, Replica]
    others: tuple[Standing, ...]
    version: str
    read_at: float

    @property
    def is_loading(self) -> bool:
        """True where a replica is on its way."""
        return any(one.state == InstanceState.STARTING for one in self.others)

    @property
    def _is_out_of_reach(self) -> bool:
        states = {one.state for one in self.others}
        return not self.ready and states == {InstanceState.UNREACHABLE}

    def refusal(self) -> NotServed | None:
        """Why it is useless to wait."""
        if self.ready:
            return None
        if not self.wanted:
            return NotServed("The model isn't running. An administrator can start it on the Models page.")
        if self.others and all(one.state == InstanceState.FAILED for one in self.others):
            return NotServed(
                "The model failed to start. An administrator finds the reason on the Models page."
            )
        if self.others and all(one.cause == Shortage.TOO_LARGE for one in self.others):
            return NotServed("The model is too large for every machine that could run it.")
        return None

    def impatience(self) -> NotServed:
        """Why it was useless to wait so long."""
        if self._is_out_of_reach:
            return NotServed("The model's server doesn't answer; try again later.", retry_after=15)
        if any(one.cause == Shortage.NO_ROOM for one in self.others):
            return NotServed("All memory is in use by other models; try again in a moment.", retry_after=10)
        return NotServed("The model isn't ready yet; try again in a moment.", retry_after=5)

    def word(self) -> str:
        """What is waited for."""
        shares = [one.progress for one in self.others if one.state == InstanceState.STARTING]
        best = max((share for share in shares if share is not None), default=0)
        if best:
            return f"loading model {best} %"
        if self._is_out_of_reach:
            return "waiting for the model's server"
        if any(one.cause == Shortage.NO_ROOM for one in self.others):
            return "waiting for memory"
        return "loading model"

    def places(self) -> bytes:
        """The replicas as the scripts know them."""
        return orjson.dumps(
            [
                {
                    "id": str(one.pk),
                    "own": one.slots is not None,
                    "slots": one.slots or (EXTERNAL_REQUESTS if one.external else _UNKNOWN_SLOTS),
                    "kv": (one.slots or 0) * one.context_tokens,
                    "context": one.context_tokens,
                    "strict": one.is_strict,
                }
                for one in self.ready.values()
            ]
        )


_known: dict[int, Model] = {}
_readings: dict[tuple[int, str], "asyncio.Future[Model]"] = {}


def known(pk: int) -> Model | None:
    """What is remembered of a model, not too long ago."""
    found = _known.get(pk)
    return found if found is not None and time.monotonic() - found.read_at < KEEP_S else None


async def read(pk: int, version: str) -> Model:
    """The model as Postgres has it, remembered under a version that was current before. Raises `ModelNotFound`."""
    model: Model = await shared(_readings, (pk, version), lambda: _read(pk, version))
    _known[pk] = model
    return model


def forget() -> None:
    """Remember nothing."""
    _known.clear()


@database_sync_to_async
def _read(pk: int, version: str) -> Model:
    served = ServedModel.objects.select_related("external").filter(pk=pk).first()
    if served is None:
        raise ModelNotFound
    instances = list(Instance.objects.current().filter(served=served).select_related("node"))
    for one in instances:
        one.served = served
    ready = {one.pk: Replica.of(one) for one in instances if one.state == InstanceState.READY}
    # What runs elsewhere isn't loaded on demand, and is wanted only while its server is switched on.
    on_demand = served.enabled and served.external_id is None
    is_external = served.external_id is not None
    configured = 0 if is_external else launch_config.of(served).context_tokens
    return Model(
        pk=served.pk,
        slug=served.slug,
        is_external=is_external,
        context_tokens=max((one.context_tokens for one in ready.values()), default=0) or configured,
        wanted=on_demand or served.desired_replicas > 0,
        ready=ready,
        others=tuple(
            Standing(InstanceState(one.state), one.cause, one.progress)
            for one in instances
            if one.state != InstanceState.READY
        ),
        version=version,
        read_at=time.monotonic(),
    )


@database_sync_to_async
def call_for(model: Model) -> None:
    """Have a replica loaded. Said again at each look: once nobody waits any more, it isn't loaded for nobody."""
    if model.wanted and not model.ready and not model.is_external:
        demand.ask(model.pk)
        if not model.others:
            tasks.wake_all()


_looks: dict[int, "asyncio.Future[Model]"] = {}


async def look(pk: int, version: str) -> Model:
    """The model as it is now. Requests that look at about the same moment share one look, however many wait."""
    return await shared(_looks, pk, lambda: _look(pk, version))


async def _look(pk: int, version: str) -> Model:
    model = await read(pk, version)
    await call_for(model)
    return model
