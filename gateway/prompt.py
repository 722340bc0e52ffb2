"""What a request will take, as far as it can be known without its tokenizer."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

# English text in current vocabularies; what was really read is settled afterwards.
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
_OPENING_BYTES = 4096
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")
# These read and write nothing more.
_SILENT = frozenset({"embeddings", "rerank", "tokenize", "apply-template"})


@dataclass(frozen=True, slots=True)
class Size:
    """`prompt_bytes` of text, about `prompt_tokens`; what the answer may be at most, None where that isn't said."""

    prompt_bytes: int
    prompt_tokens: int
    completion_tokens: int | None


def size_of(endpoint: str, body: Mapping[str, Any]) -> Size:
    """How large a request is. Pictures and sounds count nothing: their bytes say little of their tokens."""
    messages = body.get("messages")
    prompt_bytes = sum(len(text.encode(errors="replace")) for text in _texts(body))
    turns = len(messages) if isinstance(messages, list) else 0
    tokens = prompt_bytes // _BYTES_PER_TOKEN + _TOKENS_PER_MESSAGE * turns
    return Size(prompt_bytes, tokens, 0 if endpoint in _SILENT else _most(body))


def thread_of(body: Mapping[str, Any]) -> str:
    """A name for what the prompt begins with: the next turn of a conversation has the same."""
    messages = body.get("messages")
    opening = messages[:2] if isinstance(messages, list) else body.get("prompt") or body.get("input")
    if not opening:
        return ""
    try:
        said = orjson.dumps(opening)
    except orjson.JSONEncodeError:
        return ""
    return hashlib.blake2b(said[:_OPENING_BYTES], digest_size=12).hexdigest()


def _most(body: Mapping[str, Any]) -> int | None:
    for name in _LENGTHS:
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            choices = body.get("n")
            return value * (choices if isinstance(choices, int) and choices > 0 else 1)
    return None


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    for name in ("messages", "prompt", "input", "documents", "query", "instructions", "content"):
        yield from _within(body.get(name), 6)


def _within(value: object, depth: int) -> Iterator[str]:
    """Texts in a message, a list of parts, or whatever somebody sent."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list):
        for one in value:
            yield from _within(one, depth - 1)
    elif depth and isinstance(value, dict):
        for name in ("content", "text", "arguments", "output"):
            if name in value:
                yield from _within(value[name], depth - 1)
