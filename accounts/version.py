"""When what processes remember of rights and models became old: a random word in Valkey for each.

Whoever changes who may do what calls `renew()`; whoever remembers something remembers under which word it was read, and
reads anew once another word stands there, or none. So a change is seen at the next request, in every process, and an
emptied Valkey only costs a reading.
"""

import secrets
from functools import partial

import structlog
from django.db import transaction
from django_redis import get_redis_connection
from redis import RedisError

# Of users, teams, memberships, keys, limits and who may use which model.
RIGHTS = "llamaproj:version:rights"
# Of models, replicas and servers.
CATALOG = "llamaproj:version:catalog"

log = structlog.get_logger(__name__)


def renew(name: str = RIGHTS) -> None:
    """Have every process read anew what it remembers, once the present transaction is committed.

    While Valkey is away nothing is admitted on the strength of memory, so nothing is lost by not reaching it; what is
    remembered has a greatest age besides.
    """
    transaction.on_commit(partial(_renew, name))


def _renew(name: str) -> None:
    try:
        get_redis_connection().set(name, secrets.token_hex(8))
    except (RedisError, OSError) as error:
        log.warning("a change of rights could not be announced", name=name, error=str(error))
