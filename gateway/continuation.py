"""Going on with a streamed chat in mid-answer, after its replica has died.

What was written is sent again as the beginning of the assistant's answer, and what comes is told as the rest of the
same answer: id, time and model stay, the role isn't said again, tokens are summed. Plain text of one choice can be
taken up like this; tool calls, thoughts, probabilities and answers bound to a grammar can't.
"""

import re
from typing import Any

import orjson

from gateway import dialect, prompt, sse

# What is kept of one stream, at most: its text, and the events that nobody has looked into yet.
_MOST_CHARS = 256 * 1024
_UNREAD_BYTES = 8 * 1024
# Replicas lost in a row without a new token between them.
_MOST_FRUITLESS = 3
# A request with one of these asks for more than text.
_MORE_THAN_TEXT = (
    "tools",
    "functions",
    "logprobs",
    "top_logprobs",
    "n_probs",
    "grammar",
    "json_schema",
    "echo",
)
# The delta of a chunk that is a piece of text and nothing else, as llama-server writes it.
_TEXT = re.compile(rb'"delta":\{"content":("(?:[^"\\]|\\.)*")\}')
# What the delta of a text has.
_PLAIN = {"role", "content"}
_SAME = ("id", "created", "model", "system_fingerprint", "object")


def is_possible(body: dict[str, Any]) -> bool:
    """Whether the answer to this chat may be taken up by another replica."""
    form = body.get("response_format")
    is_text = form is None or (isinstance(form, dict) and form.get("type") == "text")
    return is_text and body.get("n") in (None, 1) and not any(body.get(name) for name in _MORE_THAN_TEXT)


class Continuation:
    """The answer so far, kept so that another replica can go on with it."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._texts: list[str] = []
        self._chars = 0
        self._same: dict[str, Any] = {}
        self._is_possible = is_possible(body)
        self._tokens_before = self._fruitless = 0
        self._has_usage = False
        self.tokens = 0
        self.is_finished = False

    def see(self, block: bytes) -> None:
        """Keep what a client has been sent."""
        if self._is_possible:
            self._unread.append(block)
            self._unread_bytes += len(block)
            if self._unread_bytes > _UNREAD_BYTES:
                self._read()

    def request(self) -> dict[str, Any] | None:
        """The chat from here on; None where it can't go on. After it `rewrite` what comes."""
        self._read()
        self._fruitless = 0 if self.tokens > self._tokens_before else self._fruitless + 1
        if not self._is_possible or self._fruitless > _MOST_FRUITLESS:
            return None
        self._tokens_before = self.tokens
        body = dict(self._body)
        if text := "".join(self._texts):
            body["messages"] = _with_beginning(body["messages"], text)
        for name in prompt.LENGTHS:
            most = prompt.length_of(body.get(name))
            if most is not None and most > 0:
                body[name] = max(1, most - self.tokens)
        return body

    @property
    def is_full(self) -> bool:
        """Whether the answer has its whole length already."""
        most = prompt.longest_answer(self._body)
        return most is not None and 0 < most <= self.tokens

    @property
    def lacks_usage(self) -> bool:
        """Whether the client has asked what the answer took, and hasn't been told."""
        options = self._body.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage")) and not self._has_usage

    def last_events(self, prompt_tokens: int = 0, cached_tokens: int = 0) -> bytes:
        """The end of an answer whose replica died just before it could say so."""
        chunks: list[dict[str, Any]] = []
        if not self.is_finished:
            chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        if self.lacks_usage:
            usage = {
                "completion_tokens": self.tokens,
                "prompt_tokens": prompt_tokens,
                "total_tokens": prompt_tokens + self.tokens,
                "prompt_tokens_details": {"cached_tokens": cached_tokens},
            }
            chunks.append({"choices": [], "usage": usage})
        return b"".join(sse.event(orjson.dumps(self._same | chunk)) for chunk in chunks) + sse.DONE_EVENT

    def rewrite(self, block: bytes) -> bytes:
        """Events of the new replica as the rest of the old one's answer; empty for those that say nothing new."""
        return b"".join(self._rewritten(payload) for payload in sse.payloads(block))

    def _rewritten(self, payload: bytes) -> bytes:
        if payload == sse.DONE:
            return sse.DONE_EVENT
        chunk: dict[str, Any] = orjson.loads(payload) | self._same
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            delta.pop("role", None)
            says = delta.get("content") or choice.get("finish_reason") or len(delta) > 1
            if not says and "timings" not in chunk:
                return b""
        if isinstance(usage := chunk.get("usage"), dict):
            chunk["usage"] = usage | {
                "prompt_tokens": max(0, usage.get("prompt_tokens", 0) - self._tokens_before),
                "completion_tokens": usage.get("completion_tokens", 0) + self._tokens_before,
            }
        return sse.event(orjson.dumps(chunk))

    def _read(self) -> None:
        """Take text out of the events."""
        events = b"".join(self._unread)
        texts = _TEXT.findall(events)
        # Nearly all are a piece of text and nothing else: those are read together.
        if self._same and len(texts) == events.count(b"data:") == events.count(b'"finish_reason":null'):
            self._take([text for text in orjson.loads(b"[" + b",".join(texts) + b"]") if text])
        else:
            for payload in sse.payloads(events):
                if payload != sse.DONE:
                    self._read_chunk(orjson.loads(payload))
        self._unread, self._unread_bytes = [], 0
        if self._chars > _MOST_CHARS:
            self._is_possible = False
            self._texts = []

    def _take(self, texts: list[str]) -> None:
        self._texts += texts
        self._chars += sum(map(len, texts))
        self.tokens += len(texts)

    def _read_chunk(self, chunk: dict[str, Any]) -> None:
        if not self._same:
            self._same = {name: chunk[name] for name in _SAME if name in chunk}
        self._has_usage = self._has_usage or bool(chunk.get("usage"))
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if not delta.keys() <= _PLAIN and any(delta[name] for name in delta.keys() - _PLAIN):
                self._is_possible = False
            if text := delta.get("content"):
                self._take([text])
            if choice.get("finish_reason"):
                self.is_finished = True


class Rest:
    """The new replica's answer as the rest of the old one's."""

    def __init__(self, upstream: dialect.Source, so_far: Continuation) -> None:
        self._upstream = upstream
        self._so_far = so_far

    async def block(self) -> bytes:
        """The next events; empty after the last. Raises what the upstream does."""
        while block := await self._upstream.block():
            if rewritten := self._so_far.rewrite(block):
                return rewritten
        return b""

    async def whole(self) -> bytes:
        """Answers that go on are streamed ones; the upstream's own."""
        return await self._upstream.whole()

    def close(self) -> None:
        """Close the connection."""
        self._upstream.close()


def _with_beginning(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The chat with the beginning of its answer; a beginning that the client gave itself comes first."""
    last = messages[-1]
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        return [*messages, {"role": "assistant", "content": text}]
    return [*messages[:-1], last | {"content": last["content"] + text}]
