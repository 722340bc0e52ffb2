"""What is announced of models, on the channel layer's group `models`, after commit."""

import uuid

import structlog
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from redis import RedisError

from accounts import version

GROUP = "models"

log = structlog.get_logger(__name__)


def instance_changed(served_pk: int, instance_pk: uuid.UUID) -> None:
    """An instance of the served model moved."""
    version.renew(version.CATALOG)
    _announce({"type": "models.changed", "served": served_pk, "instance": str(instance_pk)})


def instance_worked(served_pk: int, instance_pk: uuid.UUID) -> None:
    """An instance has written more than it is known for. What may be routed to it is as before."""
    _announce({"type": "models.changed", "served": served_pk, "instance": str(instance_pk)})


def served_changed(served_pk: int) -> None:
    """A served model was made, changed or removed, or who may use it."""
    version.renew(version.CATALOG)
    version.renew()
    _announce({"type": "models.changed", "served": served_pk, "instance": None})


def log_grown(served_pk: int, instance_pk: uuid.UUID) -> None:
    """The instance's process has written something."""
    _announce({"type": "models.log", "served": served_pk, "instance": str(instance_pk)})


def slots_changed(served_pk: int, instance_pk: uuid.UUID) -> None:
    """The instance's slots do something else than before."""
    _announce({"type": "models.slots", "served": served_pk, "instance": str(instance_pk)})


def files_changed() -> None:
    """A node has read its model folders."""
    _announce({"type": "models.files"})


def downloads_changed() -> None:
    """A download began, ended or went on."""
    _announce({"type": "models.downloads"})


def _announce(message: dict[str, object]) -> None:
    """Tell whoever listens. Pages look for themselves when they connect, so a lost announcement loses nothing."""
    layer = get_channel_layer()
    try:
        async_to_sync(layer.group_send)(GROUP, message)
    except (RedisError, OSError) as error:
        log.warning("an announcement was lost", error=str(error))
