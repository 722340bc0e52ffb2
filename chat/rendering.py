"""Messages as pages show them: an answer's blocks, cached by content, and the feed of one that is being written."""

import hashlib
import time
from collections.abc import Iterable

from django.core.cache import cache
from django.template.loader import render_to_string

from chat.markdown import BlockRenderer, render
from chat.models import Message
from chat.progress import text_so_far
from chat.relay_hub import Feed

# Part of the cache key: raise it when the renderer's output changes.
_RENDERER_VERSION = 2
_CACHE_S = 7 * 24 * 3600
_LONG_BLOCK_CHARS = 4000
_LONG_BLOCK_EVERY_S = 0.3


class AnswerFeed(Feed):
    """A feed that renders its text once for all sockets of the process: `blocks`, finished for good, and `open`."""

    def __init__(self, generation: str) -> None:
        super().__init__(generation)
        self._start_over()

    def _start_over(self) -> None:
        self._renderer = BlockRenderer()
        self._rendered = ""
        self._drawn = (0, -1)
        self._drawn_at = float("-inf")
        self._open = ""

    def _catch_up(self) -> None:
        if len(self._rendered) == len(self.text):
            return
        if not self.text.startswith(self._rendered):
            self._start_over()
        self._renderer.feed(self.text[len(self._rendered) :])
        self._rendered = self.text

    @property
    def blocks(self) -> list[str]:
        """HTML of the blocks that won't change any more."""
        self._catch_up()
        return self._renderer.finish() if self.final else self._renderer.blocks

    @property
    def open(self) -> str:
        """HTML of the block that is being written."""
        self._catch_up()
        if self.final:
            return ""
        drawn = (len(self._renderer.blocks), len(self._rendered))
        if drawn != self._drawn and not self._may_wait(drawn[0]):
            self._drawn, self._drawn_at = drawn, time.monotonic()
            self._open = self._renderer.open
        return self._open

    def _may_wait(self, blocks: int) -> bool:
        """A long open block is drawn less often: its cost is everybody's who shares this process."""
        recent = time.monotonic() - self._drawn_at < _LONG_BLOCK_EVERY_S
        return recent and blocks == self._drawn[0] and self._renderer.open_chars > _LONG_BLOCK_CHARS


def with_blocks(messages: Iterable[Message]) -> list[Message]:
    """The messages, each answer with its rendered `blocks`; one look into the cache for all of them."""
    found = list(messages)
    keys = {
        one.pk: _cache_key(one.text) for one in found if one.role == Message.Role.ASSISTANT and one.is_final
    }
    cached = cache.get_many(keys.values())
    fresh: dict[str, list[str]] = {}
    for one in found:
        key = keys.get(one.pk)
        if key is None:
            one.blocks = render(text_so_far(one)) if one.role == Message.Role.ASSISTANT else []
        elif key in cached:
            one.blocks = cached[key]
        else:
            one.blocks = fresh[key] = render(one.text)
    if fresh:
        cache.set_many(fresh, _CACHE_S)
    return found


def _cache_key(text: str) -> str:
    return f"blocks:{_RENDERER_VERSION}:{hashlib.sha256(text.encode()).hexdigest()}"


def message_html(message: Message) -> str:
    """One message as the page includes it and the socket pushes it."""
    (message,) = with_blocks([message])
    return render_to_string("chat/_message.html", {"message": message})


def meta_html(message: Message) -> str:
    """What stands under an ended answer: model, tokens, times, or the error with a way on."""
    return render_to_string("chat/_meta.html", {"message": message})
