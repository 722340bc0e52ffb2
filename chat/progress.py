"""How far an unfinished answer is."""

from django_redis import get_redis_connection
from redis.exceptions import RedisError

from chat.models import Generation, Message
from chat.relay import assemble, stream_entries, stream_key


def text_so_far(message: Message) -> str:
    """The text as its readers know it: the checkpoint may be a second behind the stream."""
    try:
        rows = get_redis_connection().xrange(stream_key(str(message.generation.pk)))
    except (RedisError, OSError, Generation.DoesNotExist):
        return message.text
    return assemble(message.text, stream_entries(rows))
