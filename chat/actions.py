"""What people do in chats. Each is one transaction; what it announces goes out after commit."""

from dataclasses import dataclass
from functools import partial
from uuid import UUID, uuid4

from django.db import transaction
from django.db.models import Max, Q
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import ApiKey, Team, User
from chat import events
from chat.errors import AnswerUnfinished, EmptyMessage, MessageTooLong
from chat.models import Conversation, Generation, Message
from chat.progress import text_so_far
from chat.states import FINAL, MessageStatus
from llamaproj.errors import Conflict, InvalidInput
from models_admin.models import ServedModel

MAX_MESSAGE_CHARS = 200_000
_TITLE_CHARS = 60


@dataclass(frozen=True)
class Sent:
    """A message and the answer it will get."""

    message: Message
    answer: Message


@transaction.atomic
def begin(
    *, owner: User, text: str, served: ServedModel, pk: UUID | None = None, key: ApiKey | None = None
) -> Conversation:
    """A new conversation with its first message. Raises `InvalidInput`, and `Conflict` for an id that is taken."""
    text = _checked(text)
    if pk is not None and Conversation.objects.filter(pk=pk).exists():
        raise Conflict("There is a conversation with this id already.", param="id")
    conversation = Conversation.objects.create(
        pk=pk or uuid4(), owner=owner, served=served, title=_title_of(text)
    )
    send(conversation, text=text, served=served, key=key)
    return conversation


@transaction.atomic
def send(
    conversation: Conversation,
    *,
    text: str,
    served: ServedModel,
    pk: UUID | None = None,
    key: ApiKey | None = None,
) -> Sent:
    """Add a message and queue its answer, which a program's `key` asks for within its own rights and limits.

    Raises `InvalidInput`, `AnswerUnfinished`, and `Conflict` for an id that is taken; then nothing has changed.
    """
    text = _checked(text)
    Conversation.objects.select_for_update().get(pk=conversation.pk)
    if pk is not None and Message.objects.filter(pk=pk).exists():
        raise Conflict("There is a message with this id already.", param="id")
    if conversation.messages.exclude(status__in=FINAL).exists():
        raise AnswerUnfinished
    number = (conversation.messages.aggregate(last=Max("number"))["last"] or 0) + 1
    message = conversation.messages.create(pk=pk or uuid4(), number=number, role=Message.Role.USER, text=text)
    answer = conversation.messages.create(
        number=number + 1,
        role=Message.Role.ASSISTANT,
        status=MessageStatus.QUEUED,
        model_slug=served.slug,
    )
    _queue(answer, served, key)
    Conversation.objects.filter(pk=conversation.pk).update(
        served=served, updated_at=timezone.now(), title=conversation.title or _title_of(text)
    )
    transaction.on_commit(partial(events.messages_changed, conversation.pk, message.pk, answer.pk))
    return Sent(message, answer)


@transaction.atomic
def retry(answer: Message, *, key: ApiKey | None = None) -> None:
    """Write a failed or stopped answer anew. Raises `Conflict` unless it is the conversation's last message."""
    Conversation.objects.select_for_update().get(pk=answer.conversation_id)
    answer.refresh_from_db()
    last = answer.conversation.messages.aggregate(last=Max("number"))["last"]
    if answer.role != Message.Role.ASSISTANT or not answer.is_final or answer.number != last:
        raise Conflict("Only the last answer can be written anew, once it has ended.")
    conversation = answer.conversation
    usable = ServedModel.objects.usable_by(conversation.owner, key)
    served = usable.filter(slug=answer.model_slug).first()
    if served is None and conversation.served is not None:
        served = usable.filter(pk=conversation.served.pk).first()
    if served is None:
        raise Conflict(
            "The model of this answer isn't there any more. Send the message again with another one."
        )
    Generation.objects.filter(message=answer).delete()
    Message.objects.filter(pk=answer.pk).update(
        status=MessageStatus.QUEUED,
        text="",
        error="",
        prompt_tokens=None,
        completion_tokens=None,
        timings={},
        model_slug=served.slug,
    )
    _queue(answer, served, key)
    transaction.on_commit(partial(events.messages_changed, answer.conversation_id, answer.pk))


@transaction.atomic
def stop(answer: Message) -> None:
    """End an answer where it is; its text is kept. Stopping twice, or too late, changes nothing."""
    running = Generation.objects.select_for_update().filter(message=answer, ended_at__isnull=True)
    generation = running.annotate(is_held=Q(lease_until__gt=Now())).first()
    if generation is None:
        return
    if generation.is_held:
        Generation.objects.filter(pk=generation.pk).update(stop_requested=True)
        transaction.on_commit(partial(events.stop_requested, generation.pk))
    else:
        Generation.objects.filter(pk=generation.pk).update(ended_at=timezone.now(), stop_requested=True)
        # Whoever held it has died: what it said last may not be in the checkpoint.
        text = text_so_far(Message.objects.select_related("generation").get(pk=answer.pk))
        Message.objects.filter(pk=answer.pk).update(status=MessageStatus.STOPPED, text=text)
        transaction.on_commit(partial(events.messages_changed, answer.conversation_id, answer.pk))


@transaction.atomic
def rename(conversation: Conversation, *, title: str) -> None:
    """Give the conversation another title. Raises `InvalidInput`."""
    title = " ".join(title.split())
    longest = Conversation._meta.get_field("title").max_length or 0
    if not title or len(title) > longest or "\0" in title:
        raise InvalidInput(f"A title has 1 to {longest} characters.", param="title")
    Conversation.objects.filter(pk=conversation.pk).update(title=title)
    transaction.on_commit(partial(events.title_changed, conversation.pk, title))


@transaction.atomic
def share(conversation: Conversation, team: Team | None) -> None:
    """Let a team of its owner read the conversation, or with None nobody any more. Raises `InvalidInput`."""
    if team is not None and not team.memberships.filter(user=conversation.owner_id).exists():
        raise InvalidInput("A conversation is shared with a team its owner is in.", param="team")
    Conversation.objects.filter(pk=conversation.pk).update(shared_with=team)
    conversation.shared_with = team
    transaction.on_commit(partial(events.readers_changed, conversation.pk))


@transaction.atomic
def delete(conversation: Conversation) -> None:
    """Remove the conversation with everything in it; an answer still being written ends."""
    running = Generation.objects.filter(
        Q(ended_at__isnull=True), message__conversation=conversation
    ).values_list("pk", flat=True)
    for generation in list(running):
        transaction.on_commit(partial(events.stop_requested, generation))
    conversation.delete()


def _queue(answer: Message, served: ServedModel, key: ApiKey | None) -> None:
    Generation.objects.create(message=answer, served=served, api_key_pk=key.pk if key else None)
    transaction.on_commit(events.generation_queued)


def _checked(text: str) -> str:
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise EmptyMessage
    if len(text) > MAX_MESSAGE_CHARS:
        raise MessageTooLong(
            f"A message has at most {MAX_MESSAGE_CHARS:,} characters; this one has {len(text):,}."
        )
    if "\0" in text:
        raise InvalidInput("The message contains a NUL character; remove it.")
    return text


def _title_of(text: str) -> str:
    """The first words of a message."""
    words = " ".join(text.split())
    if len(words) <= _TITLE_CHARS:
        return words
    return words[:_TITLE_CHARS].rsplit(" ", 1)[0].rstrip(",.;:") + "…"
