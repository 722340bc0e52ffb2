"""The conversation's socket: `/ws/chat/<uuid>/`.

Frames are JSON `{"type", "data", "timestamp", "requestId"}`. From the page: `send`, `stop`, `retry`, and `resume` at
every connection, which says what the page already shows. To the page: `message` (a whole message), `answer` (what a
growing answer has gained), `title`, `error`.

Each answer's news come from the process's hub; one task a socket sends them. While a send is slow, news pile up in the
feed, not in a queue, and the next frame carries the newest state.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import structlog
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import DatabaseError, InterfaceError
from redis.exceptions import RedisError

from accounts.models import User
from chat import actions, events
from chat.live import hub
from chat.models import Conversation, Message
from chat.rendering import AnswerFeed, message_html, meta_html
from chat.states import FINAL
from llamaproj.errors import InvalidInput, LlamaProjError, NotAllowed, NotAuthenticated, NotFound
from models_admin.models import ServedModel

log = structlog.get_logger(__name__)

# The page shows this many messages at most; a page that has fallen further behind reloads.
_CATCH_UP_MESSAGES = 50


@dataclass
class Shown:
    """What the page shows of an answer that is being written."""

    generation: str
    feed: AnswerFeed
    blocks: int
    open: str | None = None
    status: str = ""
    progress: str = ""


class ConversationConsumer(AsyncWebsocketConsumer):
    """One page that shows one conversation."""

    sender: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Live and end. What must not be left behind ends here: after an error Channels doesn't call `disconnect`."""
        self.shown: dict[UUID, Shown] = {}
        self.sent: set[UUID] = set()
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self.sender is not None:
                self.sender.cancel()
            for message in list(self.shown):
                self._forget(message)

    async def connect(self) -> None:
        """Accept whoever may see the conversation; everybody else is refused alike."""
        self.user = self.scope["user"]
        self.conversation_pk: UUID = self.scope["url_route"]["kwargs"]["pk"]
        self.news = asyncio.Event()
        if not self.user.is_authenticated or await self._conversation() is None:
            await self.close(4404)
            return
        await self.channel_layer.group_add(events.group(self.conversation_pk), self.channel_name)
        await self.accept()
        self.sender = asyncio.create_task(self._send_until_closed(), name="conversation-sender")

    async def disconnect(self, code: int) -> None:
        """Hear no more of the conversation."""
        await self.channel_layer.group_discard(events.group(self.conversation_pk), self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """One frame of the page. A bad one gets an error frame and changes nothing."""
        request_id = None
        try:
            kind, data, request_id = _parse(text_data)
            match kind:
                case "send":
                    await self._do_send(data)
                case "stop":
                    await database_sync_to_async(self._stop)(_uuid(data, "message"))
                case "retry":
                    await database_sync_to_async(self._retry)(_uuid(data, "message"))
                case "resume":
                    await self._resume(data)
                case _:
                    raise InvalidInput(f"There is no frame of type {kind!r}.")
        except LlamaProjError as error:
            await self._frame("error", {"message": error.message, "code": error.code}, request_id)

    # Frames from the page --------------------------------------------------------------------------------------------

    async def _do_send(self, data: dict[str, Any]) -> None:
        text, slug = data.get("text"), data.get("model")
        if not isinstance(text, str) or not isinstance(slug, str) or "\0" in slug:
            raise InvalidInput("A message has a text and a model.")
        sent = await database_sync_to_async(self._send_message)(text, slug)
        # Shown here at once; what the channel layer says of them is for the other pages.
        for message in (sent.message, sent.answer):
            self.sent.add(message.pk)
            await self._show(message, None)

    def _send_message(self, text: str, slug: str) -> actions.Sent:
        served = ServedModel.objects.visible_to(self.user).filter(slug=slug).first()
        if served is None:
            raise NotFound("This model isn't there any more. Choose another one.")
        return actions.send(self._own(), text=text, served=served)

    def _stop(self, message: UUID) -> None:
        actions.stop(self._own_message(message))

    def _retry(self, message: UUID) -> None:
        actions.retry(self._own_message(message))

    async def _resume(self, data: dict[str, Any]) -> None:
        """Bring a page that was (re)connected up to date: what is new, and what grew or ended meanwhile."""
        last = data.get("last")
        open_blocks = data.get("open")
        if not isinstance(open_blocks, dict):
            raise InvalidInput("resume says which answers are open on the page.")
        known = {_as_uuid(pk): blocks for pk, blocks in open_blocks.items() if isinstance(blocks, int)}
        messages = await database_sync_to_async(self._since)(_as_uuid(last) if last else None, set(known))
        for message in messages:
            await self._show(message, known.get(message.pk))

    def _since(self, last: UUID | None, known: set[UUID]) -> list[Message]:
        messages = self._visible().messages.select_related("generation")
        number = messages.values_list("number", flat=True).filter(pk=last).first() or 0 if last else 0
        newer = messages.filter(number__gt=number).order_by("-number")[:_CATCH_UP_MESSAGES]
        unfinished = messages.exclude(status__in=FINAL)
        changed = messages.filter(pk__in=known)
        return sorted({*newer, *unfinished, *changed}, key=lambda one: one.number)

    # Events of the channel layer -------------------------------------------------------------------------------------

    async def messages_changed(self, event: dict[str, Any]) -> None:
        """Messages were added to the conversation, here or elsewhere."""
        news = {UUID(pk) for pk in event["messages"]} - self.sent
        self.sent.clear()
        for message in await database_sync_to_async(self._messages)(news):
            await self._show(message, None)

    async def title_changed(self, event: dict[str, Any]) -> None:
        """The conversation was renamed, here or elsewhere."""
        if await self._conversation() is None:
            await self.close(4404)
            return
        await self._frame("title", {"title": event["title"], "conversation": str(self.conversation_pk)})

    async def readers_changed(self, event: dict[str, Any]) -> None:
        """Who may no longer read it hears no more."""
        if await self._conversation() is None:
            await self.close(4404)

    # Frames to the page ----------------------------------------------------------------------------------------------

    async def _show(self, message: Message, blocks: int | None) -> None:
        """Show a message: whole, unless the page has it and knows how many of its blocks it shows."""
        self._forget(message.pk)
        if message.is_final:
            await self._frame("message", {"message": str(message.pk), "html": await _html(message)})
            return
        generation = str(message.generation.pk)
        feed = await hub().watch(generation, self.news.set)
        if blocks is None or blocks > len(feed.blocks):
            # The text follows as an `answer` frame; the frame of it comes first.
            message.text = ""
            await self._frame("message", {"message": str(message.pk), "html": await _html(message)})
            blocks = 0
        self.shown[message.pk] = Shown(generation, feed, blocks)
        self.news.set()

    def _forget(self, message: UUID) -> None:
        if shown := self.shown.pop(message, None):
            hub().unwatch(shown.generation, self.news.set)

    async def _send_until_closed(self) -> None:
        """Send news; a page whose news can't be sent is told by a closed socket, and comes back by itself."""
        try:
            await self._send_news()
        except (DatabaseError, InterfaceError, RedisError, OSError, RuntimeError) as error:
            log.warning("a page's news could not be sent", error=str(error))
            await self.close(1011)

    async def _send_news(self) -> None:
        """Send what the shown answers have gained, whenever there is news and the last send is through."""
        while True:
            await self.news.wait()
            self.news.clear()
            for message, shown in list(self.shown.items()):
                await self._send_growth(message, shown)

    async def _send_growth(self, message: UUID, shown: Shown) -> None:
        feed = shown.feed
        blocks, open_, final = feed.blocks, feed.open, feed.final
        state = (open_, feed.status, feed.progress)
        if not final and len(blocks) == shown.blocks and state == (shown.open, shown.status, shown.progress):
            return
        data: dict[str, Any] = {
            "message": str(message),
            "status": feed.status,
            "progress": feed.progress,
            "blocks": shown.blocks,
            "append": blocks[shown.blocks :],
            "open": open_,
            "offset": len(feed.text),
        }
        shown.blocks, (shown.open, shown.status, shown.progress) = len(blocks), state
        if final:
            self._forget(message)
            if meta := await database_sync_to_async(self._meta)(message):
                data["meta"] = meta
        await self._frame("answer", data)

    async def _frame(self, kind: str, data: dict[str, Any], request_id: str | None = None) -> None:
        frame = {"type": kind, "data": data, "timestamp": datetime.now(UTC), "requestId": request_id}
        await self.send(orjson.dumps(frame).decode())

    # Postgres, on a worker thread ------------------------------------------------------------------------------------

    @database_sync_to_async
    def _conversation(self) -> Conversation | None:
        return Conversation.objects.visible_to(self.user).filter(pk=self.conversation_pk).first()

    def _visible(self) -> Conversation:
        # Rights may have changed since the socket was opened.
        user = User.objects.filter(pk=self.user.pk, is_active=True).first()
        if user is None:
            raise NotAuthenticated("You were signed out. Reload the page.")
        self.user = user
        conversation = Conversation.objects.visible_to(self.user).filter(pk=self.conversation_pk).first()
        if conversation is None:
            raise NotFound("This conversation was deleted.")
        return conversation

    def _own(self) -> Conversation:
        conversation = self._visible()
        if conversation.owner_id != self.user.pk:
            raise NotAllowed("Only its owner writes in this conversation.")
        return conversation

    def _messages(self, messages: Collection[UUID]) -> list[Message]:
        mine = Conversation.objects.visible_to(self.user).filter(pk=self.conversation_pk)
        found = Message.objects.filter(conversation__in=mine, pk__in=messages)
        return list(found.select_related("generation"))

    def _meta(self, message: UUID) -> str:
        # Who is shown the message may see what stands under it.
        return "".join(meta_html(found) for found in Message.objects.filter(pk=message))

    def _own_message(self, message: UUID) -> Message:
        found = self._own().messages.filter(pk=message).first()
        if found is None:
            raise NotFound("This message isn't there any more.")
        return found


_html = database_sync_to_async(message_html)


def _parse(text: str | None) -> tuple[str, dict[str, Any], str | None]:
    """A frame's type, data and request id. Raises `InvalidInput`."""
    try:
        frame = orjson.loads(text or "")
    except orjson.JSONDecodeError:
        raise InvalidInput("A frame is a JSON object.") from None
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise InvalidInput("A frame is an object with a type.")
    data, request_id = frame.get("data", {}), frame.get("requestId")
    if not isinstance(data, dict):
        raise InvalidInput("A frame's data is an object.")
    return frame["type"], data, request_id if isinstance(request_id, str) else None


def _as_uuid(value: object) -> UUID:
    try:
        return UUID(str(value))
    except ValueError:
        raise InvalidInput("That isn't a message's id.") from None


def _uuid(data: dict[str, Any], name: str) -> UUID:
    return _as_uuid(data.get(name))
