"""External servers speak OpenAI's API and nothing else: what they are asked, and how their answers become ours.

A llama-server of ours gets and gives bytes that nobody here looks into. A stranger's chunks are read one by one: their
shape is checked, the model's name becomes the portal's (a program that asked for one name must not be answered with
another, and whose server it is concerns nobody), and `usage` is counted where llama-server's `timings` would be. That
costs a few microseconds a chunk, and only there.
"""

import re
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from gateway import sse
from gateway.errors import ContextExceeded, UpstreamBusy, UpstreamLost, UpstreamRefused
from gateway.replica import Replica
from llamaproj.errors import LlamaProjError

# Chosen by the router, never by a client: a slot may hold somebody else's conversation.
_ROUTER_FIELDS = frozenset({"id_slot", "model"})
# About llama-server's slots, caches and timings. Samplers pass: what a server thinks of them it says itself.
_LLAMA_FIELDS = _ROUTER_FIELDS | {
    "cache_prompt", "n_cache_reuse", "n_discard", "n_keep", "post_sampling_probs", "response_fields", "return_progress",
    "return_tokens", "t_max_predict_ms", "timings_per_token",
}  # fmt: skip
_RESPONSE_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_MOST_WORDS = 300
_MOST_RETRY_S = 300.0
# PostgreSQL's integer.
_MOST_TOKENS = 2**31 - 1


class Source(Protocol):
    """An answer as clients get it: an `UpstreamStream`, or one in translation."""

    async def block(self) -> bytes:
        """The next streamed events; empty after the last."""
        ...

    async def whole(self) -> bytes:
        """The JSON of an answer that isn't streamed."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Lines(Protocol):
    """An answer as a stranger sends it."""

    async def read(self) -> bytes:
        """The next lines, complete. Raises `UpstreamLost` after the last."""
        ...

    async def whole(self) -> bytes:
        """The JSON of an answer that isn't streamed."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Upstream(Source, Lines, Protocol):
    """A server's answer, either way."""


def request_body(replica: Replica, body: dict[str, Any]) -> dict[str, Any]:
    """The client's request as the server of this replica understands it."""
    if replica.external is None:
        return {name: value for name, value in body.items() if name not in _ROUTER_FIELDS}
    asked = {name: value for name, value in body.items() if name not in _LLAMA_FIELDS}
    asked["model"] = replica.external.name
    if asked.get("stream") and ("messages" in asked or "prompt" in asked):
        # Without it nobody would say how many tokens it was.
        asked["stream_options"] = _options(body) | {"include_usage": True}
    return asked


def source(
    upstream: Upstream, replica: Replica, body: dict[str, Any], unseen: Callable[[bytes], None]
) -> Source:
    """The upstream itself, or its translation. `unseen` gets events that the client hasn't asked for."""
    if replica.external is None:
        return upstream
    return _Translation(
        upstream, replica.slug, shows_usage=bool(_options(body).get("include_usage")), unseen=unseen
    )


class _Translation:
    """A stranger's answer in the portal's words."""

    def __init__(
        self, upstream: Lines, slug: str, *, shows_usage: bool, unseen: Callable[[bytes], None]
    ) -> None:
        self._upstream = upstream
        self._slug = slug
        self._shows_usage = shows_usage
        self._unseen = unseen
        self._withheld: list[bytes] = []
        self._finished = self._done = False

    async def block(self) -> bytes:
        """The next chunks, checked. Raises `UpstreamLost`, `UpstreamBusy`, `ContextExceeded` or `UpstreamRefused`."""
        # Only now: what came before it in the stream has been seen.
        while self._withheld:
            self._unseen(self._withheld.pop(0))
        while not self._done:
            try:
                lines = await self._upstream.read()
            except UpstreamLost:
                # Not every server says [DONE]; an answer that said how it ends is whole.
                if not self._finished:
                    raise
                lines = sse.DONE_EVENT
            if block := b"".join(self._event(payload) for payload in sse.payloads(lines)):
                return block
        return b""

    def _event(self, payload: bytes) -> bytes:
        """One chunk for the client; empty for one that the client hasn't asked for."""
        if self._done:
            return b""
        if payload == sse.DONE:
            self._done = True
            return sse.DONE_EVENT
        chunk = self._translated(payload, "delta")
        kind = chunk.get("type")
        if isinstance(kind, str) and "choices" not in chunk:
            # Responses name their events, and say their end by one of them.
            self._done = kind in _RESPONSE_ENDS
            return b"event: " + kind.encode() + b"\n" + sse.event(orjson.dumps(chunk))
        choices = chunk.setdefault("choices", [])
        self._finished = self._finished or any(choice.get("finish_reason") for choice in choices)
        event = sse.event(orjson.dumps(chunk))
        if choices or self._shows_usage:
            return event
        self._withheld.append(event)
        return b""

    async def whole(self) -> bytes:
        """The answer, checked. Raises the same."""
        return orjson.dumps(self._translated(await self._upstream.whole(), "message"))

    def close(self) -> None:
        """Close the connection."""
        self._upstream.close()

    def _translated(self, payload: bytes, part: str) -> dict[str, Any]:
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise _garbage() from None
        if not isinstance(chunk, dict):
            raise _garbage()
        if chunk.get("error"):
            raise error_of(200, payload)
        choices = chunk.get("choices", [])
        if not isinstance(choices, list) or not all(_is_choice(choice, part) for choice in choices):
            raise _garbage()
        if "model" in chunk or choices:
            chunk["model"] = self._slug
        response = chunk.get("response")
        if isinstance(response, dict) and "model" in response:
            response["model"] = self._slug
        # Nobody checked them, and everything that matters in them is in `usage`.
        chunk.pop("timings", None)
        usage = chunk.pop("usage", None)
        if isinstance(usage, dict):
            chunk["usage"] = usage | _counts(usage)
        return chunk


def error_of(status: int, body: bytes, retry_after: str = "") -> LlamaProjError:
    """A stranger's refusal in words that may be shown to whoever asked."""
    kind, code, message = _said(body)
    if status in {401, 403} or kind == "authentication_error" or code == "invalid_api_key":
        # Its words may repeat a part of the key.
        return UpstreamLost("The model's server refuses the portal's key. An administrator can change it.")
    if status in {429, 503}:
        seconds = float(retry_after) if re.fullmatch(r"\d{1,6}", retry_after) else 5.0
        return UpstreamBusy(
            f"The model's server can't take the request at the moment: {message or status}",
            retry_after=min(seconds, _MOST_RETRY_S),
        )
    if (
        code in {"context_length_exceeded", "exceed_context_size_error"}
        or kind == "exceed_context_size_error"
    ):
        return ContextExceeded()
    if 300 <= status < 400:
        return UpstreamLost(
            "The model's server redirects elsewhere. An administrator can correct its address."
        )
    if 400 <= status < 500 and status not in {404, 408}:
        return UpstreamRefused(message or f"The model's server refused the request ({status}).")
    return UpstreamLost(f"The model's server failed: {message or status}")


def _said(body: bytes) -> tuple[str, str, str]:
    """Type, code and message of OpenAI's error object, or of what others make of it."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", "", ""
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    if isinstance(error, str):
        return "", "", error[:_MOST_WORDS]
    if not isinstance(error, dict):
        return "", "", ""
    message = error.get("message") or error.get("detail")
    kind, code = error.get("type"), error.get("code")
    return (
        kind if isinstance(kind, str) else "",
        code if isinstance(code, str) else "",
        message[:_MOST_WORDS] if isinstance(message, str) else "",
    )


def _is_choice(choice: object, part: str) -> bool:
    if not isinstance(choice, dict):
        return False
    if isinstance(choice.get("text"), str) and part not in choice:
        return isinstance(choice.get("finish_reason"), str | None)
    said = choice.get(part)
    if not isinstance(said, dict | None) or not isinstance(choice.get("finish_reason"), str | None):
        return False
    if said is None:
        choice[part] = said = {}
    return isinstance(said.get("content"), str | list | None if part == "message" else str | None)


def _counts(usage: dict[str, Any]) -> dict[str, int]:
    """Its numbers of tokens, where they are some."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens")
    return {name: count(usage[name]) for name in names if name in usage}


def count(value: object) -> int:
    """A number of tokens; 0 for what can't be one."""
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
    return value if good and isinstance(value, int) else 0


def _options(body: dict[str, Any]) -> dict[str, Any]:
    options = body.get("stream_options")
    return options if isinstance(options, dict) else {}


def _garbage() -> UpstreamLost:
    return UpstreamLost("The model's server answered with garbage.")
