"""A served model as pages show it: one state out of its instances', with the figures beside it."""

from dataclasses import dataclass
from datetime import datetime

from models_admin import notes
from models_admin.memory import footprint
from models_admin.models import Instance, PortalConfig, ServedModel
from models_admin.states import ALIVE
from models_admin.states import InstanceState as S

# A model is as well as its best replica.
_BEST_FIRST = (S.READY, S.STARTING, S.PENDING, S.BACKING_OFF, S.CRASHED, S.UNREACHABLE, S.DRAINING, S.FAILED)
WORDS = {
    S.PENDING: "waiting",
    S.STARTING: "loading",
    S.READY: "ready",
    S.DRAINING: "stopping",
    S.STOPPED: "stopped",
    S.CRASHED: "crashed",
    S.BACKING_OFF: "starting again",
    S.FAILED: "failed",
    S.UNREACHABLE: "out of reach",
}


@dataclass(frozen=True)
class Replica:
    """One instance with its figures."""

    instance: Instance
    rate: float | None

    @property
    def lives(self) -> bool:
        """True where its process is there; the pid of another one tells nothing."""
        return S(self.instance.state) in ALIVE

    @property
    def word(self) -> str:
        """Its state in a word, and how far it is."""
        progress = self.instance.progress
        return f"{word_of(self.instance)}, {progress} %" if progress else word_of(self.instance)


@dataclass(frozen=True)
class Overview:
    """One served model with its figures."""

    served: ServedModel
    state: S
    since: datetime | None
    reason: str
    replicas: list[Replica]
    memory_bytes: int | None
    estimated_bytes: int | None

    @property
    def word(self) -> str:
        """The state in a word."""
        return "on demand" if self.waits_for_demand else WORDS[self.state]

    @property
    def waits_for_demand(self) -> bool:
        """True where nothing runs and whoever asks for it has it loaded."""
        return self.state == S.STOPPED and self.served.enabled and self.served.on_demand

    @property
    def needs_reason(self) -> bool:
        """True where the state alone doesn't say enough."""
        return self.state not in {S.READY, S.STOPPED} and bool(self.reason)

    @property
    def public_reason(self) -> str:
        """The reason for people who don't manage machines: without paths, addresses and logs."""
        if self.state == S.FAILED:
            return "It could not be started. An administrator finds the reason here."
        return (
            "It will answer as soon as it is ready."
            if self.served.desired_replicas
            else "It is being stopped."
        )

    @property
    def can_start(self) -> bool:
        """True where Start would change something."""
        return not self.served.desired_replicas or any(
            one.instance.state == S.FAILED for one in self.replicas
        )

    @property
    def can_stop(self) -> bool:
        """True where Stop would change something."""
        return self.served.enabled or self.served.desired_replicas > 0

    @property
    def can_restart(self) -> bool:
        """True where a process of ours runs that another could replace."""
        return (
            self.can_stop
            and not self.served.external
            and any(one.instance.state in {S.STARTING, S.READY} for one in self.replicas)
        )

    @property
    def is_diagnosed(self) -> bool:
        """True where its page tells the cause of the failure, so that the reason would only repeat it."""
        failed = [one.instance for one in self.replicas if one.instance.state == S.FAILED]
        return self.state == S.FAILED and any(one.cause for one in failed)

    @property
    def tokens_per_second(self) -> float | None:
        """What all replicas write together; None where nobody has said."""
        rates = [one.rate for one in self.replicas if one.rate is not None]
        return sum(rates) if rates else None

    @property
    def ready(self) -> int:
        """How many replicas answer."""
        return sum(one.instance.state == S.READY for one in self.replicas)

    @property
    def node_bytes(self) -> int:
        """The memory of the machine that has the file; 0 for what runs elsewhere."""
        return self.served.file.node.memory_bytes if self.served.file else 0

    @property
    def file_name(self) -> str:
        """The file without its folder, or what the external server calls the model."""
        return self.served.file.file_name if self.served.file else self.served.external_name


def word_of(instance: Instance) -> str:
    """An instance's state in a word."""
    return WORDS[S(instance.state)]


def replica(instance: Instance) -> Replica:
    """An instance with what its node says of it."""
    return Replica(instance, notes.rate_of(instance.pk) if instance.state == S.READY else None)


def of(served: ServedModel, portal: PortalConfig | None = None) -> Overview:
    """Look at the served model; its instances should be prefetched, and the portal's row given where there are many."""
    current = [one for one in served.instances.all() if one.state != S.STOPPED]
    best = min(current, key=lambda one: _BEST_FIRST.index(S(one.state)), default=None)
    if best is not None:
        state, since, reason = S(best.state), best.state_since, best.reason
    elif served.desired_replicas:
        state, since, reason = S.PENDING, None, _why_nothing_happens(served)
    else:
        state, since, reason = S.STOPPED, None, ""
    memory = footprint.estimate_of(served, portal)
    measured = [one.memory_bytes for one in current if one.memory_bytes]
    return Overview(
        served=served,
        state=state,
        since=since,
        reason=reason,
        replicas=[replica(one) for one in current],
        memory_bytes=sum(measured) if measured else None,
        estimated_bytes=memory.total if memory else None,
    )


def _why_nothing_happens(served: ServedModel) -> str:
    if served.file and not served.file.node.is_alive:
        return f"The machine {served.file.node.name} doesn't answer."
    return "Waiting for its turn."
