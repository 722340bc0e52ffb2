"""Words in everything one may read, found through the index `message_words`."""

from django.contrib.postgres.search import SearchHeadline, SearchQuery, SearchVector
from django.db.models import QuerySet
from django.db.models.functions import Left

from accounts.models import User
from chat.models import Conversation, Message
from chat.states import FINAL

# The index knows these characters of a message, in this spelling.
_INDEXED_CHARS = 100_000
_EXCERPT_WORDS = 30


def search(text: str, *, reader: User) -> QuerySet[Message]:
    """Ended messages that have all the words, the newest first, each with an `excerpt`.

    As people type it: "these words together", this or that, -without.
    """
    wanted = SearchQuery(text, config="simple", search_type="websearch")
    words = Left("text", _INDEXED_CHARS)
    rows = Message.objects.filter(
        conversation__in=Conversation.objects.visible_to(reader), status__in=sorted(FINAL)
    )
    return (
        rows.annotate(words=SearchVector(words, config="simple"))
        .filter(words=wanted)
        .annotate(
            excerpt=SearchHeadline(
                words, wanted, config="simple", max_words=_EXCERPT_WORDS, start_sel="", stop_sel=""
            )
        )
        .select_related("conversation")
        .order_by("-created_at")
    )
