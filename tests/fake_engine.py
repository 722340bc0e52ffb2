"""A llama-server that says what a test tells it to, on a real port.

In a test's own process:

    async with FakeEngine(slots=2) as engine:
        ...  # engine.base_url, engine.api_key, engine.requests, engine.busy_slots

As a process, with llama-server's flags (those it doesn't know are ignored): `as_binary(folder)` writes a program for
LLAMA_SERVER_BIN. How the process behaves is told by the variable FAKE_ENGINE, the JSON of a `Conduct`.

How an answer behaves is told by the request's field `fake`, the JSON of a `Script`:

    {"messages": […], "stream": true, "fake": {"tokens": 100, "interval_ms": 5, "cut_after": 20}}

Requests without that field take the next of `scripts`. Without a script it answers 16 tokens at once. The
text of an answer depends on nothing but its script; asked with an
assistant's message last, it goes on after it where that is a beginning of its text.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from aiohttp import web


@dataclass(frozen=True)
class Conduct:
    """How the process behaves."""

    load_s: float = 0.0  # 503 that long
    crash: bool = False  # exit with status 1 at start
    crash_after_s: float | None = None
    hang_after_s: float | None = None  # from then on no answer to anything
    ignore_term: bool = False  # only SIGKILL ends it


@dataclass(frozen=True)
class Script:
    """How one answer behaves. Counts are tokens of the answer."""

    tokens: int = 16
    text: str = ""  # instead of `tokens` numbered words
    interval_ms: float = 0.0
    prefill_ms: float = 0.0
    finish: str = "stop"
    status: int = 200  # an error before the first chunk
    retry_after: int | None = None
    drop: bool = False  # close without a response
    cut_after: int | None = None  # close in mid-answer
    die_after: int | None = None  # the process ends (in a test's own process: like cut_after)
    stall_after: int | None = None  # nothing comes any more
    error_after: int | None = None  # `data: {"error": …}`, then the end
    garbage_after: int | None = None  # a line that isn't JSON, then the rest
    no_done: bool = False  # end without usage and [DONE]

    def pieces(self) -> list[str]:
        """The whole answer, token by token."""
        if self.text:
            return [self.text[i : i + 4] for i in range(0, len(self.text), 4)]
        return [f"w{i} " for i in range(self.tokens)]


@dataclass
class _Slot:
    id: int
    task: int | None = None
    prompt: list[str] = field(default_factory=list)


def _from_json(kind: type, data: dict[str, Any]) -> Any:
    known = {item.name for item in fields(kind)}
    if unknown := set(data) - known:
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind(**data)


class FakeEngine:
    """The server. Counters and the bodies of all requests are there to look at."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str = "fake-key",
        alias: str = "fake",
        slots: int = 4,
        context_tokens: int = 4096,
        conduct: Conduct | None = None,
        alone: bool = False,
    ) -> None:
        self.host, self.port, self.api_key, self.alias = host, port, api_key, alias
        self.context_tokens = context_tokens
        self.conduct = conduct or Conduct()
        self.alone = alone
        self.requests: list[dict[str, Any]] = []
        self.scripts: list[Script] = []
        self.cancelled = 0
        self.prompt_tokens = self.predicted_tokens = 0
        self._slots = [_Slot(i) for i in range(slots)]
        self._freed = asyncio.Condition()
        self._waiting = 0
        self._tasks = 0
        self._born = time.monotonic()
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def busy_slots(self) -> int:
        return sum(slot.task is not None for slot in self._slots)

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._gate], client_max_size=2**26)
        add = app.router.add_route
        add("GET", "/health", self._health)
        add("GET", "/v1/models", self._models)
        add("GET", "/props", self._props)
        add("GET", "/slots", self._slots_)
        add("POST", "/slots/{id}", self._slot_action)
        add("GET", "/metrics", self._metrics)
        add("POST", "/tokenize", self._tokenize)
        add("POST", "/apply-template", self._apply_template)
        add("POST", "/v1/chat/completions", self._chat)
        add("POST", "/v1/chat/completions/input_tokens", self._input_tokens)
        # A client that goes away cancels its handler, as llama-server does.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner:
            await self._runner.cleanup()

    # Doors --------------------------------------------------------------------------------------------------

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        age = time.monotonic() - self._born
        if self.conduct.hang_after_s is not None and age >= self.conduct.hang_after_s:
            await asyncio.Event().wait()
        if age < self.conduct.load_s:
            return _error(503, "Loading model", "unavailable_error")
        if request.path != "/health" and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return _error(401, "Invalid API Key", "authentication_error")
        return await handler(request)

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.alias, "object": "model"}]})

    async def _props(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"total_slots": len(self._slots), "model_alias": self.alias, "chat_template": "fake"}
            | {"default_generation_settings": {"n_ctx": self.context_tokens}, "build_info": "fake"}
        )

    async def _slots_(self, request: web.Request) -> web.Response:
        if "fail_on_no_slot" in request.query and self.busy_slots == len(self._slots):
            return _error(503, "no slot available", "unavailable_error")
        return web.json_response(
            [
                {"id": slot.id, "n_ctx": self.context_tokens, "is_processing": slot.task is not None}
                | ({"id_task": slot.task} if slot.task is not None else {})
                for slot in self._slots
            ]
        )

    async def _slot_action(self, request: web.Request) -> web.Response:
        slot = self._slots[int(request.match_info["id"])]
        action = request.query.get("action")
        held = len(slot.prompt)
        if action == "erase":
            slot.prompt = []
            return web.json_response({"id_slot": slot.id, "n_erased": held})
        count = {"save": "n_saved", "restore": "n_restored"}.get(action or "")
        if count is None:
            return _error(400, "Invalid action", "invalid_request_error")
        return web.json_response({"id_slot": slot.id, count: held, "timings": {f"{action}_ms": 1.0}})

    async def _metrics(self, request: web.Request) -> web.Response:
        values = {
            "prompt_tokens_total": self.prompt_tokens,
            "tokens_predicted_total": self.predicted_tokens,
            "requests_processing": self.busy_slots,
            "requests_deferred": self._waiting,
        }
        lines = [f"llamacpp:{name} {value}" for name, value in values.items()]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"tokens": list(range(len(str(body.get("content", "")).split())))})

    async def _apply_template(self, request: web.Request) -> web.Response:
        return web.json_response({"prompt": _prompt((await request.json())["messages"])})

    async def _input_tokens(self, request: web.Request) -> web.Response:
        count = len(_prompt((await request.json())["messages"]).split())
        return web.json_response({"input_tokens": count, "object": "response.input_tokens"})

    # Answers ------------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        if "fake" not in body and self.scripts:
            script = self.scripts.pop(0)
        else:
            script = _from_json(Script, body.get("fake") or {})
        if script.drop:
            _cut(request)
            return web.Response()
        if script.status != 200:
            headers = {"Retry-After": str(script.retry_after)} if script.retry_after else None
            return _error(
                script.status, "as scripted", _TYPES.get(script.status, "server_error"), headers=headers
            )
        prompt = _prompt(body["messages"]).split()
        if len(prompt) > self.context_tokens:
            return _error(
                400,
                f"request ({len(prompt)} tokens) exceeds the available context size ({self.context_tokens} tokens)",
                "exceed_context_size_error",
                n_prompt_tokens=len(prompt),
                n_ctx=self.context_tokens,
            )
        try:
            async with self._slot(int(body.get("id_slot", -1))) as slot:
                return await self._answer(request, body, script, prompt, slot)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    @contextlib.asynccontextmanager
    async def _slot(self, wanted: int) -> AsyncIterator[_Slot]:
        """A free slot, waited for as long as it takes."""

        def free() -> _Slot | None:
            fitting = [slot for slot in self._slots if wanted in (-1, slot.id) and slot.task is None]
            return fitting[0] if fitting else None

        self._waiting += 1
        try:
            async with self._freed:
                await self._freed.wait_for(free)
                slot = free()
                assert slot is not None
                self._tasks += 1
                slot.task = self._tasks
        finally:
            self._waiting -= 1
        try:
            yield slot
        finally:
            slot.task = None
            async with self._freed:
                self._freed.notify_all()

    async def _answer(
        self, request: web.Request, body: dict[str, Any], script: Script, prompt: list[str], slot: _Slot
    ) -> web.StreamResponse:
        started = time.perf_counter()
        cached = _common(slot.prompt, prompt) if body.get("cache_prompt", True) else 0
        slot.prompt = prompt
        pieces = _continued(script.pieces(), body["messages"])
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or len(pieces)
        finish = script.finish if limit >= len(pieces) else "length"
        pieces = pieces[:limit]
        head = {
            "created": int(time.time()),
            "id": f"chatcmpl-fake{slot.task}",
            "model": self.alias,
            "object": "chat.completion.chunk",
        }

        def timings(done: int) -> dict[str, Any]:
            return {"timings": _timings(cached, len(prompt), script.prefill_ms, done, started)}

        if not body.get("stream"):
            await asyncio.sleep((script.prefill_ms + script.interval_ms * len(pieces)) / 1000)
            self._count(len(prompt) - cached, len(pieces))
            message = {"role": "assistant", "content": "".join(pieces)}
            return web.json_response(
                head
                | {
                    "object": "chat.completion",
                    "choices": [{"index": 0, "finish_reason": finish, "message": message}],
                }
                | {"usage": _usage(len(prompt), len(pieces), cached)}
                | timings(len(pieces))
            )

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(chunk: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

        opening = chunk({"role": "assistant", "content": None})
        if body.get("return_progress"):
            for share in (0, 1) if not script.prefill_ms else (0, 0.5, 1):
                processed = cached + round((len(prompt) - cached) * share)
                progress = {"total": len(prompt), "cache": cached, "processed": processed}
                await send(
                    opening | {"prompt_progress": progress | {"time_ms": round(script.prefill_ms * share)}}
                )
                if share < 1:
                    await asyncio.sleep(script.prefill_ms / 2000)
        else:
            await asyncio.sleep(script.prefill_ms / 1000)
        await send(opening)

        begin = time.perf_counter()
        for done, piece in enumerate(pieces):
            if done in (script.cut_after, script.die_after):
                if self.alone and done == script.die_after:
                    os._exit(1)
                _cut(request)
                return response
            if done == script.stall_after:
                await asyncio.Event().wait()
            if done == script.error_after:
                await send({"error": {"code": 500, "message": "as scripted", "type": "server_error"}})
                return response
            if done == script.garbage_after:
                await response.write(b"data: {not json\xff\n\n")
            if script.interval_ms:
                # Paced from the beginning, so that late timers don't add up.
                await asyncio.sleep(begin + done * script.interval_ms / 1000 - time.perf_counter())
            self._count(len(prompt) - cached if done == 0 else 0, 1)
            extra = timings(done + 1) if body.get("timings_per_token") else {}
            await send(chunk({"content": piece}) | extra)
        if script.no_done:
            return response
        last = chunk({}, finish)
        if (body.get("stream_options") or {}).get("include_usage"):
            await send(last)
            await send(
                head
                | {"choices": [], "usage": _usage(len(prompt), len(pieces), cached)}
                | timings(len(pieces))
            )
        else:
            await send(last | timings(len(pieces)))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _count(self, prompt: int, predicted: int) -> None:
        self.prompt_tokens += prompt
        self.predicted_tokens += predicted


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def _error(status: int, message: str, kind: str, *, headers: Any = None, **more: Any) -> web.Response:
    body = {"error": {"code": status, "message": message, "type": kind} | more}
    return web.json_response(body, status=status, headers=headers)


def _cut(request: web.Request) -> None:
    if request.transport:
        request.transport.abort()


def _prompt(messages: list[dict[str, Any]]) -> str:
    return " ".join(f"<|{message['role']}|> {message.get('content') or ''}" for message in messages)


def _continued(pieces: list[str], messages: list[dict[str, Any]]) -> list[str]:
    """The rest of the answer, after an assistant's message that is its beginning."""
    if not messages or messages[-1].get("role") != "assistant":
        return pieces
    said, whole = messages[-1].get("content") or "", "".join(pieces)
    if not whole.startswith(said):
        return pieces
    rest: list[str] = []
    position = 0
    for piece in pieces:
        start, position = position, position + len(piece)
        if position > len(said):
            rest.append(piece[max(0, len(said) - start) :])
    return rest


def _common(one: list[str], other: list[str]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _timings(cached: int, prompt: int, prefill_ms: float, predicted: int, started: float) -> dict[str, Any]:
    decode_ms = max(0.001, (time.perf_counter() - started) * 1000 - prefill_ms)
    prefill_ms = max(0.001, prefill_ms)
    return {
        "cache_n": cached,
        "prompt_n": prompt - cached,
        "prompt_ms": prefill_ms,
        "prompt_per_token_ms": prefill_ms / max(1, prompt - cached),
        "prompt_per_second": (prompt - cached) / prefill_ms * 1000,
        "predicted_n": predicted,
        "predicted_ms": decode_ms,
        "predicted_per_token_ms": decode_ms / max(1, predicted),
        "predicted_per_second": predicted / decode_ms * 1000,
    }


# As a process -----------------------------------------------------------------------------------------------


def as_binary(folder: Path) -> Path:
    """Write a program that runs this file with this Python; its path is good for LLAMA_SERVER_BIN."""
    path = folder / "fake-llama-server"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


async def _serve(options: argparse.Namespace, conduct: Conduct) -> None:
    engine = FakeEngine(
        host=options.host,
        port=options.port,
        api_key=options.api_key or os.environ.get("LLAMA_API_KEY", ""),
        alias=options.alias,
        slots=options.parallel,
        context_tokens=max(1, options.ctx_size // options.parallel),
        conduct=conduct,
        alone=True,
    )
    async with engine:
        print(f"fake engine: serving {options.alias} on {engine.base_url}", flush=True)
        await asyncio.sleep(conduct.crash_after_s if conduct.crash_after_s is not None else 2**31)
        print("fake engine: crashing as told", file=sys.stderr, flush=True)
        os._exit(1)


def main() -> int:
    """Take llama-server's flags and serve."""
    parser = argparse.ArgumentParser("fake llama-server", allow_abbrev=False)
    parser.add_argument("--version", action="version", version="version: 1 (fake)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--alias", default="fake")
    parser.add_argument("--model", "-m")
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--slots", action="store_true")
    parser.add_argument("--slot-save-path")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--parallel", "-np", type=int, default=4)
    parser.add_argument("--ctx-size", "-c", type=int, default=4 * 4096)
    parser.add_argument("--threads", type=int)
    options, _ = parser.parse_known_args()
    conduct: Conduct = _from_json(Conduct, json.loads(os.environ.get("FAKE_ENGINE") or "{}"))
    if conduct.crash:
        print("fake engine: failed to load model, as told", file=sys.stderr)
        return 1
    if conduct.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_serve(options, conduct))
    return 0


if __name__ == "__main__":
    sys.exit(main())
