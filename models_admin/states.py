"""The states of an instance and the moves between them."""

from django.db import models


class InstanceState(models.TextChoices):
    """Where one llama-server is in its life."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    CRASHED = "crashed"
    BACKING_OFF = "backing_off"
    FAILED = "failed"
    # Its node is silent: nobody knows whether it still runs.
    UNREACHABLE = "unreachable"


S = InstanceState

MOVES: dict[InstanceState, frozenset[InstanceState]] = {
    S.PENDING: frozenset({S.STARTING, S.CRASHED, S.STOPPED, S.FAILED}),
    S.STARTING: frozenset({S.READY, S.CRASHED, S.DRAINING, S.STOPPED, S.UNREACHABLE}),
    S.READY: frozenset({S.DRAINING, S.CRASHED, S.STOPPED, S.UNREACHABLE}),
    S.DRAINING: frozenset({S.STOPPED, S.CRASHED, S.UNREACHABLE}),
    S.CRASHED: frozenset({S.BACKING_OFF, S.FAILED, S.STOPPED}),
    S.BACKING_OFF: frozenset({S.PENDING, S.STOPPED}),
    S.FAILED: frozenset({S.PENDING, S.STOPPED}),
    S.STOPPED: frozenset({S.PENDING}),
    S.UNREACHABLE: frozenset({S.READY, S.DRAINING, S.CRASHED, S.STOPPED}),
}

ALIVE = frozenset({S.STARTING, S.READY, S.DRAINING})


class Shortage(models.TextChoices):
    """Why no place has been found for a replica."""

    NO_ROOM = "no_room", "others use the memory now"
    TOO_LARGE = "too_large", "no machine is large enough"


class DownloadState(models.TextChoices):
    """Where a download is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
