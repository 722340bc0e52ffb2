"""Is the process alive, and can it do its work?"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import connection
from django.http import HttpRequest, JsonResponse
from redis.asyncio import Redis

from models_admin.models import Instance, Node
from models_admin.states import InstanceState

_CHECK_TIMEOUT_S = 3.0


async def healthz(request: HttpRequest) -> JsonResponse:
    """200 while this process serves; asks no dependency."""
    return JsonResponse({"status": "ok"})


async def readyz(request: HttpRequest) -> JsonResponse:
    """200 when every dependency answers and at least one node is alive, 503 with the reasons otherwise."""
    found = await report()
    return JsonResponse(found, status=200 if found["status"] == "ok" else 503)


async def report() -> dict[str, Any]:
    """Each dependency with its state."""
    checks = {"database": _database, "redis": _redis, "workers": _workers, "models": _models}
    results = await asyncio.gather(*(_guarded(check) for check in checks.values()))
    found = dict(zip(checks, results, strict=True))
    ok = all(found[name]["ok"] for name in ("database", "redis", "workers"))
    return {"status": "ok" if ok else "unavailable", **found}


async def _guarded(check: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return {"ok": True} | await check()
    except Exception as error:  # whatever a dependency raises is the answer here
        return {"ok": False, "error": type(error).__name__}


@sync_to_async
def _database() -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return {}


async def _redis() -> dict[str, Any]:
    async with Redis.from_url(settings.REDIS_URL) as client:
        await client.ping()
    return {}


@sync_to_async
def _workers() -> dict[str, Any]:
    nodes = list(Node.objects.alive().values_list("name", flat=True))
    return {"ok": bool(nodes), "nodes": nodes}


@sync_to_async
def _models() -> dict[str, Any]:
    states = list(Instance.objects.exclude(state=InstanceState.STOPPED).values_list("state", flat=True))
    return {"ready": states.count(InstanceState.READY), "total": len(states)}
