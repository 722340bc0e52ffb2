"""The obvious relay, as a baseline: an XADD for every token, an XREAD for every reader, over redis-py.

Run as `writer` or as `reader`; neither keeps anything, checks who may read or renders anything.
"""

import asyncio
import sys
from typing import Any

import aiohttp
import orjson
import uvloop
from redis.asyncio import Redis

from benchmarks.child import orders, say
from benchmarks.stamps import Reading, tokens_of

_MAX_ENTRIES = 2000
_TTL_S = 60
_MAX_CONNECTIONS = 2000


async def _write(redis: "Redis", session: aiohttp.ClientSession, order: dict[str, Any], number: int) -> None:
    key = f"naive:{order['name']}:{number}"
    body = {"messages": [{"role": "user", "content": order["text"]}], "stream": True}
    async with session.post(order["url"] + "/v1/chat/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                text = orjson.loads(line[6:])["choices"][0]["delta"].get("content")
                if text:
                    await redis.xadd(key, {"t": text}, maxlen=_MAX_ENTRIES, approximate=True)
    await redis.xadd(key, {"end": "1"})
    await redis.expire(key, _TTL_S)


async def _read(redis: "Redis", order: dict[str, Any], number: int) -> Reading:
    key, last = f"naive:{order['name']}:{number}", b"0"
    reading = Reading()
    while True:
        rows: Any = await redis.xread({key: last}, block=0)
        for _, entries in rows:
            for entry, fields in entries:
                last = entry
                if b"end" in fields:
                    return reading
                reading.take(tokens_of(fields[b"t"].decode()))


async def _main(role: str, redis_url: str) -> None:
    # Every reader blocks a connection of its own.
    redis = Redis.from_url(redis_url, max_connections=_MAX_CONNECTIONS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        async for order in orders():
            each = range(order["count"])
            if role == "writer":
                await asyncio.gather(*(_write(redis, session, order, number) for number in each))
            else:
                readings = await asyncio.gather(*(_read(redis, order, number) for number in each))
                say(read=len(readings))
                say(answers=[one.report() for one in readings])
    await redis.aclose()


if __name__ == "__main__":
    sys.exit(uvloop.run(_main(*sys.argv[1:])))
