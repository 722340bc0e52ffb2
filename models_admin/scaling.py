"""How many replicas a model should have: from what its replicas report, with hysteresis."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """The bounds and how patient one is, in seconds."""

    least: int
    most: int
    idle_timeout_s: float
    pinned: bool = False
    up_after_s: float = 4.0
    down_after_s: float = 60.0
    # The share of the slots that would be left busy after one replica less.
    calm: float = 0.5


@dataclass(frozen=True)
class Load:
    """What a model's ready replicas report together.

    `queued` requests wait for a slot since `queued_for_s`; `idle_s` is how long nobody has used it; `calm_for_s` how
    long one replica less would have done.
    """

    ready: int
    slots: int
    busy: int
    queued: int
    queued_for_s: float
    calm_for_s: float
    idle_s: float


def is_calm(load: Load, policy: Policy) -> bool:
    """True where one replica less would do."""
    if not load.ready or load.queued:
        return False
    if load.ready == 1:
        # The other is still on its way, perhaps for ever.
        return load.busy <= load.slots * policy.calm
    left = load.slots * (load.ready - 1) / load.ready
    return load.busy <= left * policy.calm


def target(desired: int, load: Load, policy: Policy, *, asked: bool) -> int:
    """The number of replicas wanted now, one step from `desired` at most.

    Up when requests have queued for a while and everything wanted is ready; down when one less would have done for much
    longer; to what is always kept when nobody has used it for its idle time-out. `asked` means that somebody waits.
    """
    least = max(policy.least, 1 if asked else 0)
    if desired < least:
        return least
    if desired > policy.most:
        return max(policy.most, least)
    all_ready = load.ready >= desired
    if load.queued and load.queued_for_s >= policy.up_after_s and all_ready and desired < policy.most:
        return desired + 1
    kept = max(least, 1 if policy.pinned else 0)
    if desired > max(kept, 1) and load.calm_for_s >= policy.down_after_s:
        return desired - 1
    if desired > kept and load.ready and load.idle_s >= policy.idle_timeout_s:
        return desired - 1
    return desired
