"""Downloads on nodes: each has a Celery queue of its own, `node.<name>`. Every task may run twice, late, or never."""

from uuid import UUID

import structlog
from celery import shared_task
from celery.signals import worker_shutting_down
from kombu.exceptions import OperationalError
from redis import RedisError

from models_admin.hub import downloads
from models_admin.models import Node

log = structlog.get_logger(__name__)

# Unheard tasks are no loss: the next look finds the same rows.
_EXPIRES_S = 30.0


@shared_task
def fetch(pk: str) -> None:
    """One attempt; then what waits behind it."""
    if downloads.run(UUID(pk)) and (node := Node.objects.filter(downloads=UUID(pk)).first()):
        resume(node)


def resume(node: Node) -> None:
    """Take up what waits on this machine, and what a killed worker left. Call it in the node's own worker, often."""
    for pk in downloads.waiting(node):
        send(node.name, pk)


def send(node_name: str, pk: UUID) -> None:
    """Have the node look after a download at once."""
    try:
        fetch.apply_async(args=(str(pk),), queue=f"node.{node_name}", expires=_EXPIRES_S, retry=False)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("a download could not be sent to its node", download=str(pk), error=str(error))


@worker_shutting_down.connect
def _on_shutting_down(**_: object) -> None:
    downloads.stop_all()
