"""Background work of usage. Every task may run twice, late, or never."""

import structlog
from celery import shared_task
from django.db import InterfaceError, OperationalError
from redis import RedisError

from gateway.usage import drain as stream
from gateway.usage import retention

log = structlog.get_logger(__name__)


@shared_task
def drain() -> None:
    """Write the records that wait."""
    try:
        stream.drain()
    except (OperationalError, InterfaceError, RedisError) as error:
        log.warning("usage records wait", error=str(error))


@shared_task
def prune() -> None:
    """Delete the records that are too old."""
    retention.prune()
