"""A program with an API key, on the door's own ASGI application: no server in between.

    program = Program(key)
    response = await program.post({"model": …, "messages": […]})

An answer is given when the application has ended, so that what it records is on its way; `Connection` shows one that
still goes on.
"""

import asyncio
import json
from typing import Any

import orjson
from channels.db import database_sync_to_async

from gateway.models import UsageRecord
from gateway.openai.application import application
from gateway.usage.drain import drain

CHAT = "/v1/chat/completions"


class Response:
    """A whole answer."""

    def __init__(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.status_code, self.headers, self.content = status, headers, content

    def __getitem__(self, name: str) -> str:
        return self.headers[name]

    def json(self) -> Any:
        return json.loads(self.content)


class Connection:
    """One request on its way."""

    def __init__(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        said = {"host": "localhost", "content-type": "application/json"} | headers
        self._scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "scheme": "http",
            "headers": [
                (name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in said.items()
            ],
        }
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._in.put_nowait({"type": "http.request", "body": body})
        self.status = 0
        self.headers: dict[str, str] = {}
        self.content = b""
        self.reads = asyncio.Event()
        self.reads.set()
        self._begun = asyncio.Event()
        self._news = asyncio.Event()
        self.task = asyncio.ensure_future(application(self._scope, self._in.get, self._send))

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.content += message.get("body", b"")
            if not message.get("more_body"):
                # As uvicorn does.
                self.leave()
        self._news.set()

    def leave(self) -> None:
        """The client goes away."""
        self._in.put_nowait({"type": "http.disconnect"})

    async def until(self, text: bytes, seconds: float = 10) -> None:
        """Return once the answer contains `text`."""
        async with asyncio.timeout(seconds):
            while text not in self.content:
                self._news.clear()
                await self._news.wait()

    async def response(self, seconds: float = 30) -> Response:
        """The answer, once the application has ended."""
        async with asyncio.timeout(seconds):
            await self.task
        return Response(self.status, self.headers, self.content)


class Program:
    """A program with a key."""

    def __init__(self, key: str) -> None:
        self.headers = {"authorization": f"Bearer {key}"}

    async def get(self, path: str) -> Response:
        return await Connection("GET", path, **self.headers).response()

    async def post(self, body: object, path: str = CHAT) -> Response:
        return await self.send(orjson.dumps(body), path)

    async def send(self, data: str | bytes, path: str = CHAT, **headers: str) -> Response:
        return await self.open(data, path, **headers).response()

    def open(self, data: str | bytes, path: str = CHAT, **headers: str) -> Connection:
        body = data.encode() if isinstance(data, str) else data
        return Connection("POST", path, body, **self.headers, **headers)

    def stream(self, body: dict[str, object], path: str = CHAT, **headers: str) -> Connection:
        return self.open(orjson.dumps({"stream": True} | body), path, **headers)


def payloads(content: bytes) -> list[str]:
    """What the events of a stream carry."""
    return [line[6:].decode() for line in content.split(b"\n") if line.startswith(b"data: ")]


def text_of(content: bytes) -> str:
    """The text that the chunks of a chat's stream make."""
    chunks = [json.loads(one) for one in payloads(content) if one != "[DONE]"]
    return "".join(
        choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ())
    )


async def the_record() -> UsageRecord:
    """The newest record of a request."""
    await database_sync_to_async(drain)()
    return await UsageRecord.objects.alatest("at")
