"""What should run, and where: one pass over all served models that makes, places and lets go of replicas.

Any node's worker may run it, one at a time; it only writes rows. `lifecycle` on each node then makes them so. External
models are not scheduled: whether they answer is not ours to decide.
"""

import structlog
from django.db import DatabaseError, InterfaceError

from models_admin.locks import alone
from models_admin.models import ServedModel
from models_admin.scheduling.places import place_all, somebody_waits
from models_admin.scheduling.replicas import adjust, lose_silent_nodes
from models_admin.scheduling.wanting import follow_demand
from models_admin.scheduling.world import World, want

log = structlog.get_logger(__name__)


def schedule(here: str) -> bool:
    """One pass. `here` is the node that runs it: alive, whatever its last heartbeat says.

    Returns true where somebody waits for memory that others may soon be done with: then look again shortly.
    """
    with alone("schedule", wait_ms=200) as is_alone:
        if not is_alone:
            return False
        world = World(here)
        lose_silent_nodes(world)
        for served in world.served:
            try:
                follow_demand(world, served)
                adjust(world, served)
            except (DatabaseError, InterfaceError):
                raise
            except Exception:  # one model's trouble is its own
                log.exception("a model could not be scheduled", model=served.slug)
        place_all(world)
        return somebody_waits(world)


def preload() -> None:
    """Want one replica of each model that is to be loaded when the portal starts."""
    for served in ServedModel.objects.filter(enabled=True, preload=True, desired_replicas=0):
        want(served, max(1, served.min_replicas), "preload")
