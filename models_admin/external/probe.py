"""What an external server offers, asked at `GET …/models`. What it answers is a stranger's: bounded in time and size.

finding = await ask("http://host:11434/v1", key)
finding.healthy, finding.problem, finding.models, finding.base_url
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx

from models_admin.external import address as external_address

# All of it, with every address that is tried.
_PATIENCE_S = 8.0
_STEP_S = 4.0
_MAX_BYTES = 2 * 1024 * 1024
_MAX_MODELS = 2000
# `ServedModel.external_name` holds that much.
_MAX_NAME = 200
_WORDS: dict[int, str] = {
    httpx.codes.UNAUTHORIZED: "It wants a key, or another one than this.",
    httpx.codes.FORBIDDEN: "It refuses this key.",
    httpx.codes.TOO_MANY_REQUESTS: "It has too many requests at the moment.",
    httpx.codes.SERVICE_UNAVAILABLE: "It isn't ready at the moment (503).",
}


@dataclass(frozen=True)
class Finding:
    """What a check found. `base_url` is where the models were listed, which may be longer than what was asked."""

    base_url: str
    models: tuple[str, ...] = ()
    problem: str = ""

    @property
    def healthy(self) -> bool:
        """True where it listed its models."""
        return not self.problem


class _NoList(Exception):
    """Something else than a list of models is at this address."""


class _Refused(Exception):
    """It is the right server, and it says no."""


async def ask(base_url: str, api_key: str) -> Finding:
    """Ask for the list of models, with and without the /v1 that people leave off. Never raises."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await _ask(base_url, api_key)
    except TimeoutError:
        return Finding(base_url, problem=f"It doesn't answer within {_PATIENCE_S:.0f} seconds.")


async def _ask(base_url: str, api_key: str) -> Finding:
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    problem = ""
    # A redirect could lead the key and the portal anywhere; proxies of the machine's environment don't concern it.
    async with httpx.AsyncClient(
        timeout=_STEP_S, follow_redirects=False, trust_env=False, headers=headers
    ) as client:
        for candidate in external_address.candidates(base_url):
            try:
                return Finding(candidate, models=await _list(client, f"{candidate}/models"))
            except _NoList as error:
                problem = problem or str(error)
            except httpx.TimeoutException:
                return Finding(base_url, problem=f"It doesn't answer within {_STEP_S:.0f} seconds.")
            except httpx.ConnectError:
                return Finding(base_url, problem="Nothing answers at this address.")
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                return Finding(base_url, problem=f"The connection failed: {type(error).__name__}.")
            except _Refused as error:
                return Finding(base_url, problem=str(error))
    return Finding(base_url, problem=problem)


async def _list(client: httpx.AsyncClient, url: str) -> tuple[str, ...]:
    """The names of the models listed there. Raises `_NoList`, `_Refused` or httpx's errors."""
    async with client.stream("GET", url) as response:
        status = response.status_code
        if words := _WORDS.get(status):
            raise _Refused(words)
        if response.is_redirect:
            raise _NoList("It redirects elsewhere; type the address it leads to.")
        if status == httpx.codes.NOT_FOUND:
            raise _NoList("It answers, but lists no models there (404). Does its address end in /v1?")
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise _Refused(f"It answers with an error ({status}).")
        if status != httpx.codes.OK:
            raise _NoList(f"It answers {status} instead of a list of models.")
        return _names(await _body(response))


async def _body(response: httpx.Response) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _NoList("It compresses what was asked for plainly.")
    data = bytearray()
    async for piece in response.aiter_raw():
        data += piece
        if len(data) > _MAX_BYTES:
            raise _NoList("Its list of models is absurdly long.")
    return bytes(data)


def _names(body: bytes) -> tuple[str, ...]:
    """The ids of OpenAI's list, each once. Those that nobody could call it by are left out."""
    try:
        listed: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise _NoList("It answers, but not with a list of models.") from None
    entries = listed.get("data") if isinstance(listed, dict) else None
    if entries is None and isinstance(listed, dict) and listed.get("object") == "list":
        # Ollama says null where it has no model yet.
        entries = []
    if not isinstance(entries, list):
        raise _NoList("It answers, but not with a list of models.")
    names = [entry.get("id") for entry in entries[:_MAX_MODELS] if isinstance(entry, dict)]
    return tuple(
        dict.fromkeys(
            name
            for name in names
            if isinstance(name, str) and name.isprintable() and 0 < len(name) <= _MAX_NAME
        )
    )
