"""What programs ask, read from a body: only what must be right for routing; the engine checks the rest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import ModelNotFound
from llamaproj.errors import InvalidInput

Body = dict[str, Any]

_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path below /v1 (or at the top) of the same name at llama-server."""

    name: str
    check: Callable[[Body], None]
    streams: bool = False


def parse(data: bytes, endpoint: Endpoint) -> Body:
    """The request's fields. Raises `InvalidInput`."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"The body isn't valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidInput("The body must be a JSON object.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidInput("Name a model.", param="model")
    if len(model) > _LONGEST_NAME or "\0" in model:
        # Nothing is called so; the database can't even be asked.
        raise ModelNotFound(param="model")
    if not isinstance(body.get("stream", False), bool | None):
        raise InvalidInput("stream is true or false.", param="stream")
    if not endpoint.streams:
        body.pop("stream", None)
    endpoint.check(body)
    return body


def _messages(body: Body) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("Send at least one message.", param="messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidInput("Each message is an object with a role.", param=f"messages[{place}]")


def _needs(name: str, kinds: type | tuple[type, ...], what: str) -> Callable[[Body], None]:
    def check(body: Body) -> None:
        value = body.get(name)
        if not isinstance(value, kinds) or value in ("", []):
            raise InvalidInput(f"{name} is {what}.", param=name)

    return check


def _rerank(body: Body) -> None:
    _needs("query", str, "the text to compare with")(body)
    # Jina's name of the field, and the one of text-embeddings-inference.
    name = "texts" if "documents" not in body and "texts" in body else "documents"
    _needs(name, list, "a list of texts")(body)


def _tokenize(body: Body) -> None:
    if not isinstance(body.get("content"), str):
        raise InvalidInput("content is the text to cut into tokens.", param="content")


_ENDPOINTS = (
    Endpoint("chat/completions", _messages, streams=True),
    Endpoint("completions", _needs("prompt", (str, list), "a text or a list"), streams=True),
    Endpoint("embeddings", _needs("input", (str, list), "a text or a list of texts")),
    Endpoint("rerank", _rerank),
    Endpoint("responses", _needs("input", (str, list), "a text or a list of messages"), streams=True),
    Endpoint("tokenize", _tokenize),
    Endpoint("apply-template", _messages),
)
# Not below /v1, as at llama-server.
_AT_THE_TOP = frozenset({"tokenize", "apply-template"})
ENDPOINTS = {f"/{one.name}" if one.name in _AT_THE_TOP else f"/v1/{one.name}": one for one in _ENDPOINTS}
