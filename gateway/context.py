"""The longest prompt and answer that somebody may have, where that is less than the model's context."""

from typing import Any

import aiohttp
import orjson

from gateway import prompt
from gateway.errors import ContextExceeded
from gateway.replica import Replica
from gateway.upstream import dumps, session

_COUNTED_IN = aiohttp.ClientTimeout(total=30.0)
# How llama-server counts a prompt: the path, and the fields that it needs.
_COUNTERS = {
    "chat/completions": "/v1/chat/completions/input_tokens",
    "completions": "/tokenize",
    "responses": "/v1/responses/input_tokens",
}


async def fit(replica: Replica, endpoint: str, body: dict[str, Any], most_tokens: int) -> None:
    """Shorten what the answer may be so that it fits with its prompt. Raises `ContextExceeded` where none fits.

    The replica's own tokenizer counts; where it can't, a prompt is refused only if it certainly is too long.
    """
    counted = await count(replica, endpoint, body)
    if counted is None:
        counted = prompt.size_of(endpoint, body).prompt_tokens
        if counted <= most_tokens * 2:
            counted = min(counted, most_tokens - 1)
    if counted >= most_tokens:
        raise ContextExceeded(counted, most_tokens)
    room = most_tokens - counted
    for name in prompt.LENGTHS:
        said = prompt.length_of(body.get(name))
        if said is not None:
            body[name] = min(said, room) if said >= 0 else room
    # One of them is the endpoint's own, and known to everybody.
    own = "max_output_tokens" if endpoint == "responses" else "max_tokens"
    if body.get(own) is None and (own != "max_tokens" or body.get("max_completion_tokens") is None):
        body[own] = room


async def count(replica: Replica, endpoint: str, body: dict[str, Any]) -> int | None:
    """The prompt's tokens; None where the replica doesn't say."""
    path = _COUNTERS.get(endpoint)
    if path is None or replica.external is not None:
        return None
    asked: dict[str, Any] = {"content": body.get("prompt")} if endpoint == "completions" else body
    try:
        async with session().post(
            replica.url(path),
            data=dumps(asked),
            headers={"content-type": "application/json", "authorization": f"Bearer {replica.api_key}"},
            allow_redirects=False,
            timeout=_COUNTED_IN,
        ) as response:
            said = orjson.loads(await response.read()) if response.status == 200 else {}
    except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError):
        return None
    if not isinstance(said, dict):
        return None
    tokens = said.get("tokens")
    count = len(tokens) if isinstance(tokens, list) else said.get("input_tokens")
    return count if isinstance(count, int) else None
