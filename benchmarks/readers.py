"""The readers of a benchmark, all in one process: pages on the portal's sockets, or clients of the upstream itself."""

import asyncio
import sys
from typing import Any

import aiohttp
import orjson
import uvloop

from benchmarks.child import orders, say
from benchmarks.stamps import Reading, tokens_of

# Browsers offer it; 15 is the window they offer.
_DEFLATE = 15


class Doubled(RuntimeError):
    """A frame doesn't continue what the page shows."""


class Page:
    """One page on one conversation, which believes nothing: it checks every frame against what it already has."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._shows = ""
        self._start_over("")

    def _start_over(self, message: str) -> None:
        self._message = message
        self._reading = Reading()
        self._blocks = 0
        self._finished_tokens = 0

    async def send(self, kind: str, data: dict[str, object]) -> None:
        """One frame to the portal."""
        await self._socket.send_str(orjson.dumps({"type": kind, "data": data, "requestId": "1"}).decode())

    async def ask(self, text: str, model: str) -> None:
        """Send a message; returns once its answer is on the page, still empty."""
        await self.send("send", {"text": text, "model": model})
        while True:
            frame = orjson.loads(await self._socket.receive_str())
            if frame["type"] == "error":
                raise RuntimeError(frame["data"]["message"])
            if frame["type"] == "message" and 'data-role="assistant"' in frame["data"]["html"]:
                self._start_over(frame["data"]["message"])
                return

    async def read(self) -> None:
        """Read the answer to its end."""
        while True:
            frame = orjson.loads(await self._socket.receive_str())
            data = frame["data"]
            if frame["type"] != "answer" or data["message"] != self._message:
                continue
            self._take(data)
            if "meta" in data:
                return

    def report(self) -> dict[str, object]:
        """For the conductor of the benchmark."""
        return {"message": self._message, **self._reading.report()}

    def _take(self, data: dict[str, Any]) -> None:
        if data["blocks"] != self._blocks:
            raise Doubled(f"the page shows {self._blocks} blocks; the frame continues {data['blocks']}")
        finished = tokens_of("".join(data["append"]))
        shown = finished + tokens_of(data["open"] or "")
        known = len(self._reading.tokens) - self._finished_tokens
        if shown[:known] != self._reading.tokens[self._finished_tokens :]:
            raise Doubled("what the page shows isn't how the frame begins")
        self._reading.take(shown[known:])
        self._blocks += len(data["append"])
        self._finished_tokens += len(finished)


async def _connect(
    session: aiohttp.ClientSession, order: dict[str, Any], conversation: str, room: asyncio.Semaphore
) -> Page:
    async with room:
        socket = await session.ws_connect(
            f"{order['url']}/ws/chat/{conversation}/",
            headers={"Cookie": order["cookie"], "Origin": order["url"]},
            compress=_DEFLATE,
        )
    page = Page(socket)
    await page.send("resume", {"last": None, "open": {}})
    return page


async def _read_directly(session: aiohttp.ClientSession, order: dict[str, Any]) -> Reading:
    """What reading llama-server costs a client that keeps nothing: parse each event, look at the text."""
    reading = Reading()
    body = {"messages": [{"role": "user", "content": order["text"]}], "stream": True}
    async with session.post(order["url"] + "/v1/chat/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                text = orjson.loads(line[6:])["choices"][0]["delta"].get("content")
                reading.take(tokens_of(text or ""))
    return reading


async def _main() -> None:
    pages: list[Page] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        async for order in orders():
            match order["do"]:
                case "connect":
                    room = asyncio.Semaphore(8)
                    joining = [_connect(session, order, one, room) for one in order["conversations"]]
                    pages = list(await asyncio.gather(*joining))
                    say(connected=len(pages))
                case "ask":
                    await asyncio.gather(*(page.ask(order["text"], order["model"]) for page in pages))
                    say(asked=len(pages))
                    await asyncio.gather(*(page.read() for page in pages))
                    say(read=len(pages))
                    say(answers=[page.report() for page in pages])
                case "read":
                    reading = [_read_directly(session, order) for _ in range(order["count"])]
                    readings = await asyncio.gather(*reading)
                    say(read=len(readings))
                    say(answers=[one.report() for one in readings])


if __name__ == "__main__":
    sys.exit(uvloop.run(_main()))
