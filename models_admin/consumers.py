"""The models pages' socket, `/ws/models/`: pieces of HTML as they change.

With `?model=SLUG` it serves that model's own page, whose query may choose a log (`replica`, `lines`); with
`?page=downloads` the downloads page; otherwise the list. Each frame is JSON with `content` (HTML), `target` and `swap`,
which the page's htmx puts in place. Announcements only say what has changed; what is shown is read anew, as the person
may see it at that moment, at most a few times a second.
"""

import asyncio
from typing import Any
from urllib.parse import parse_qs

import orjson
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.utils import timezone

from accounts.models import User
from llamaproj.errors import NotFound
from models_admin import access, events, fragments, remedies
from models_admin.hub import fragments as download_fragments

_PAUSE_S = 0.25
_NOT_SIGNED_IN = 4401
_NOT_FOUND = 4404
# What may have changed.
_LIST, _FILES, _LOG, _SLOTS = "list", "files", "log", "slots"
_DOWNLOADS = "downloads"

Frame = tuple[str, str, str]


class ModelsConsumer(AsyncWebsocketConsumer):
    """One open page about models."""

    async def connect(self) -> None:
        """Accept who is signed in, show the present, then whatever changes."""
        self._changed: set[int | str] = set()
        self._something_changed = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        query = {
            key: values[0] for key, values in parse_qs(self.scope["query_string"].decode("latin-1")).items()
        }
        self._slug, self._page = query.get("model", ""), query.get("page", "")
        self._log_choice = fragments.LogChoice.of(query)
        # The model's own page hears of one model; which one it knows after its first look.
        self._served_pk: int | None = None
        if not self.scope["user"].is_authenticated:
            await self.close(_NOT_SIGNED_IN)
            return
        await self.accept()
        await self.channel_layer.group_add(events.GROUP, self.channel_name)
        # What happened between the page and the socket, or while the socket was down.
        self._note(_LIST, _FILES)
        self._sender = asyncio.create_task(self._send_changes(), name=f"models page {self.channel_name}")

    async def disconnect(self, code: int) -> None:
        """Stop sending."""
        await self.channel_layer.group_discard(events.GROUP, self.channel_name)
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Nothing is asked over this socket."""

    async def models_changed(self, message: dict[str, Any]) -> None:
        """A model or one of its instances has changed."""
        self._note(message["served"] if message["instance"] else _LIST)

    async def models_files(self, message: dict[str, Any]) -> None:
        """A scan has found something."""
        self._note(_FILES)

    async def models_downloads(self, message: dict[str, Any]) -> None:
        """A download began, ended or went on."""
        if self._page == _DOWNLOADS:
            self._note(_DOWNLOADS)

    async def models_log(self, message: dict[str, Any]) -> None:
        """A process has written something."""
        if message["served"] == self._served_pk:
            self._note(_LOG)

    async def models_slots(self, message: dict[str, Any]) -> None:
        """Slots do something else than before."""
        if message["served"] == self._served_pk:
            self._note(_SLOTS)

    def _note(self, *what: int | str) -> None:
        self._changed.update(what)
        self._something_changed.set()

    async def _send_changes(self) -> None:
        """While a send is slow, changes become one; a client that doesn't read costs one frame."""
        while True:
            await self._something_changed.wait()
            self._something_changed.clear()
            changed, self._changed = self._changed, set()
            frames = await self._frames(changed)
            if frames is None:
                await self.close(_NOT_FOUND)
                return
            for content, target, swap in frames:
                frame = {
                    "type": "fragment",
                    "content": content,
                    "target": target,
                    "swap": swap,
                    "timestamp": timezone.now(),
                    "requestId": None,
                }
                await self.send(text_data=orjson.dumps(frame).decode())
            await asyncio.sleep(_PAUSE_S)

    @database_sync_to_async
    def _frames(self, changed: set[int | str]) -> list[Frame] | None:
        """What to show. None where there is nothing left that this person may see."""
        user = User.objects.filter(pk=self.scope["user"].pk, is_active=True).first()
        if user is None:
            return None
        if self._page == _DOWNLOADS:
            manager = access.may_manage(user)
            return [(download_fragments.downloads(user), "#downloads", "outerMorph")] if manager else None
        try:
            return self._of_model(user, changed) if self._slug else self._of_list(user, changed)
        except NotFound:
            return None

    def _of_list(self, user: User, changed: set[int | str]) -> list[Frame]:
        frames: list[Frame] = []
        if _LIST in changed:
            frames.append((fragments.models(user), "#models", "outerMorph"))
        else:
            numbers = [one for one in changed if isinstance(one, int)]
            frames += [
                (fragments.model(user, served), fragments.target(served.pk), "outerMorph")
                for served in access.visible(user).filter(pk__in=numbers)
            ]
        if _FILES in changed and access.may_manage(user):
            frames.append((fragments.files(user), "#model-files", "outerMorph"))
        return frames

    def _of_model(self, user: User, changed: set[int | str]) -> list[Frame]:
        served = access.find_visible(user, self._slug)
        self._served_pk = served.pk
        frames: list[Frame] = []
        moved = _LIST in changed or served.pk in changed
        if moved:
            frames.append((fragments.head(user, served), "#model-head", "outerMorph"))
            frames.append((fragments.replicas(user, served), "#model-replicas", "outerMorph"))
        if not access.may_manage(user):
            return frames
        if moved or (_LOG in changed and remedies.is_troubled(served)):
            frames.append((fragments.diagnosis(user, served), "#model-diagnosis", "outerMorph"))
        if moved or _SLOTS in changed:
            frames.append((fragments.slots(user, served), "#model-slots", "outerMorph"))
        if moved and served.external is None:
            frames.append(
                (fragments.log_choice(user, served, self._log_choice), "#model-log-choice", "outerMorph")
            )
        if (moved or _LOG in changed) and served.external is None:
            frames.append((fragments.log(user, served, self._log_choice), "#model-log", "outerMorph"))
        return frames
