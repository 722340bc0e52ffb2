"""A server that speaks OpenAI's API and is no llama-server: no timings, `usage` last, errors in OpenAI's own words.

    async with FakeOpenAI(models=["llama3:latest"], key="sk-theirs") as server:
        ...  # server.base_url, server.requests, server.conduct = "garbage"

`conduct` says how it misbehaves: a status ("503"), or one of "redirect", "garbage", "html", "slow", "endless",
"bomb", "cut", "no-done", "no-usage", "error", "odd-usage".
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

from aiohttp import web

WORDS = ("Good ", "morning, ", "dear ", "portal.")


class FakeOpenAI:
    """The server. What it was asked is in `requests`, with their headers in `headers`."""

    def __init__(self, *, models: list[object], key: str = "", root: str = "/v1", conduct: str = "") -> None:
        self.models, self.key, self.root, self.conduct = models, key, root, conduct
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.asked: list[str] = []
        self.elsewhere = 0
        self.interval_s = 0.0
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return self.origin + self.root

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**26)
        app.router.add_get(f"{self.root}/models", self._models)
        app.router.add_post(f"{self.root}/chat/completions", self._chat)
        app.router.add_route("*", "/elsewhere", self._elsewhere)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _elsewhere(self, request: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.json_response({"object": "list", "data": [{"id": "stolen"}]})

    async def _misbehave(self, request: web.Request) -> web.StreamResponse | None:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(
                401, f"Incorrect API key provided: {request.headers.get('Authorization')}", "invalid_api_key"
            )
        if self.conduct.isdigit():
            headers = {"retry-after": "7"} if self.conduct in {"429", "503"} else {}
            return _error(int(self.conduct), "as told", "told", headers)
        if self.conduct == "redirect":
            return web.Response(status=307, headers={"location": f"{self.origin}/elsewhere"})
        if self.conduct == "html":
            return web.Response(text="<html>Sign in</html>", content_type="text/html")
        if self.conduct == "slow":
            await asyncio.sleep(60)
        if self.conduct in {"endless", "bomb"}:
            response = web.StreamResponse(
                headers={"content-encoding": "gzip"} if self.conduct == "bomb" else {}
            )
            await response.prepare(request)
            while True:
                await response.write(b" " * 2**16)
        return None

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if (answer := await self._misbehave(request)) is not None:
            return answer
        if self.conduct == "garbage":
            return web.Response(text='{"data": 3}', content_type="application/json")
        data = [{"id": one, "object": "model"} if isinstance(one, str) else one for one in self.models]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if (answer := await self._misbehave(request)) is not None:
            return answer
        if body["model"] not in self.models:
            return _error(404, f"The model {body['model']} does not exist", "model_not_found")
        usage = {"prompt_tokens": 7, "completion_tokens": len(WORDS), "total_tokens": 11}
        if not body.get("stream"):
            if self.conduct == "garbage":
                return web.json_response({"choices": 3})
            message = {"role": "assistant", "content": "".join(WORDS)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            # As some do, the name of a version.
            return web.json_response(
                {
                    "object": "chat.completion",
                    "model": body["model"] + "-2026",
                    "choices": [choice],
                    "usage": usage,
                }
            )
        return await self._stream(request, body, usage)

    async def _stream(
        self, request: web.Request, body: dict[str, Any], usage: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)

        async def say(chunk: object) -> None:
            # With spaces, as Python's json has them, unlike llama-server.
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return {
                "object": "chat.completion.chunk",
                "model": body["model"],
                "choices": [choice],
                "usage": None,
            }

        await say(chunk({"role": "assistant"}))
        for place, word in enumerate(WORDS):
            await asyncio.sleep(self.interval_s)
            if place == 2 and self.conduct == "garbage":
                await response.write(b"data: {nonsense\n\n")
            if place == 2 and self.conduct == "error":
                await say({"error": {"message": "The GPU is gone.", "type": "server_error"}})
                return response
            if place == 2 and self.conduct == "cut":
                request.transport.close()
                return response
            await say(chunk({"content": word}))
        await say(chunk({}, "stop"))
        if self.conduct == "odd-usage":
            usage = {"prompt_tokens": -5, "completion_tokens": "many", "total_tokens": 10**30}
        if body.get("stream_options", {}).get("include_usage") and self.conduct != "no-usage":
            await say(
                {"object": "chat.completion.chunk", "model": body["model"], "choices": [], "usage": usage}
            )
        if self.conduct != "no-done":
            await response.write(b"data: [DONE]\n\n")
        return response


@contextlib.contextmanager
def in_thread() -> Iterator[Callable[[FakeOpenAI], FakeOpenAI]]:
    """Start servers in a thread of their own, for tests that block: `start(FakeOpenAI(models=[…]))`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started: list[FakeOpenAI] = []

    def start(server: FakeOpenAI) -> FakeOpenAI:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(5)
        started.append(server)
        return server

    try:
        yield start
    finally:
        for server in started:
            asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def _error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)
