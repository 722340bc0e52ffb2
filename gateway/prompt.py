"""What a request will take, as far as it can be known without its tokenizer."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

# English text in current vocabularies; what was really read is settled afterwards.
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
_OPENING_BYTES = 4096
# Where a request has the text that is read, and where its messages and their parts have it.
_FIELDS = ("messages", "prompt", "input", "documents", "query", "instructions", "content")
_PARTS = ("content", "text", "arguments", "output")
# What an answer's length is called; which of several an engine follows is its own affair.
LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")
# More than any answer has: numbers beyond it are as good as this one.
_MOST_TOKENS = 2**31 - 1
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
    prompt_bytes = sum(_bytes_of(body[name]) for name in _FIELDS if name in body)
    turns = len(messages) if isinstance(messages, list) else 0
    tokens = prompt_bytes // _BYTES_PER_TOKEN + _TOKENS_PER_MESSAGE * turns
    return Size(prompt_bytes, tokens, 0 if endpoint in _SILENT else longest_answer(body))


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


def length_of(value: object) -> int | None:
    """A number of tokens as engines read it: without its fraction, less than 0 for no end. None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(max(-1, min(value, _MOST_TOKENS)))


def longest_answer(body: Mapping[str, Any]) -> int | None:
    """What the answer may be at most, all its choices together; None where nothing ends it."""
    said = [most for name in LENGTHS if (most := length_of(body.get(name))) is not None]
    if not said or min(said) < 0:
        return None
    choices = body.get("n")
    return min(max(said) * (choices if isinstance(choices, int) and choices > 0 else 1), _MOST_TOKENS)


def _bytes_of(value: object, depth: int = 6) -> int:
    """The text in a message, a list of parts, or whatever somebody sent."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode(errors="replace"))
    if depth and isinstance(value, list):
        return sum(_bytes_of(one, depth - 1) for one in value)
    if depth and isinstance(value, dict):
        return sum(_bytes_of(value[name], depth - 1) for name in _PARTS if name in value)
    return 0
