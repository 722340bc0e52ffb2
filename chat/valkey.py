"""Connections to Valkey for asyncio."""

from django.conf import settings
from redis.asyncio import BlockingConnectionPool, Redis

_MAX_CONNECTIONS = 16
_WAIT_S = 5.0


def client() -> "Redis":
    """A client with a pool of its own: when hundreds of answers begin at once, they wait for a connection."""
    pool = BlockingConnectionPool.from_url(
        settings.REDIS_URL, max_connections=_MAX_CONNECTIONS, timeout=_WAIT_S
    )
    return Redis.from_pool(pool)
