"""Looking after external servers, on the default queue. Every task may run twice, late, or never."""

import structlog
from celery import shared_task
from django_redis import get_redis_connection
from kombu.exceptions import OperationalError
from redis import RedisError

from models_admin.external import external
from models_admin.models import ExternalServer

log = structlog.get_logger(__name__)

_EXPIRES_S = 15
# Many requests lose a server at the same moment.
_SOON_HOLDS_MS = 2000


@shared_task
def tick() -> None:
    """The clock: ask every server whose time has come, and settle what some earlier step left unsettled."""
    for server in ExternalServer.objects.all():
        if server.enabled and external.is_due(server):
            _send(server.pk)
        else:
            external.settle_all(server.pk)


@shared_task
def check_server(pk: int) -> None:
    """Ask one server."""
    server = ExternalServer.objects.filter(pk=pk).first()
    if server is not None:
        external.check(server)


def check_soon(pk: int) -> None:
    """Have the server asked at once. Many calls within two seconds are one call."""
    try:
        if not get_redis_connection().set(f"llamaproj:external:{pk}", 1, nx=True, px=_SOON_HOLDS_MS):
            return
    except RedisError as error:
        log.warning("an external server is asked later", server=pk, error=str(error))
        return
    _send(pk)


def _send(pk: int) -> None:
    try:
        check_server.apply_async(args=(pk,), expires=_EXPIRES_S, retry=False)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("a task could not be sent", task=check_server.name, server=pk, error=str(error))
