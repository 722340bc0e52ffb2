"""What a chat announces: to generators through Valkey, to open pages through the channel layer; always after commit."""

from uuid import UUID

import structlog
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django_redis import get_redis_connection
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

WAKE_CHANNEL = "generator:wake"
STOP_CHANNEL = "generator:stop"


def group(conversation: UUID) -> str:
    """The channel-layer group of the sockets on a conversation."""
    return f"conversation.{conversation}"


def generation_queued() -> None:
    """There is an answer to write."""
    _publish(WAKE_CHANNEL, b"")


def stop_requested(generation: UUID) -> None:
    """Somebody wants an answer to end."""
    _publish(STOP_CHANNEL, str(generation).encode())


def messages_changed(conversation: UUID, *messages: UUID) -> None:
    """Messages were added, or begun anew."""
    _announce(conversation, {"type": "messages.changed", "messages": [str(pk) for pk in messages]})


def title_changed(conversation: UUID, title: str) -> None:
    """The conversation has a new name."""
    _announce(conversation, {"type": "title.changed", "title": title})


def readers_changed(conversation: UUID) -> None:
    """It is shared with somebody else now, or with nobody."""
    _announce(conversation, {"type": "readers.changed"})


def _publish(channel: str, data: bytes) -> None:
    try:
        get_redis_connection().publish(channel, data)
    except (RedisError, OSError) as error:
        # What was done is in PostgreSQL, and generators look there every second.
        log.warning("generators were not told", channel=channel, error=str(error))


def _announce(conversation: UUID, message: dict[str, object]) -> None:
    try:
        async_to_sync(get_channel_layer().group_send)(group(conversation), message)
    except (RedisError, OSError) as error:
        # The other pages see it when they reconnect.
        log.warning("open pages were not told", conversation=str(conversation), error=str(error))
