"""The OpenAI-compatible door as a raw ASGI application: parse, authenticate, run the one path, translate errors.

It stands beside Django because every layer between a program and its tokens is paid for with each of them. What
Django's middleware does for pages is done in `headers` and here.
"""

import time
from typing import Any

import orjson
import structlog
from channels.db import database_sync_to_async
from django.conf import settings
from django.utils import timezone

from accounts import keys
from accounts.models import ApiKey
from gateway import admission, completion
from gateway.admission import Caller
from gateway.errors import ModelNotFound
from gateway.models import UsageRecord
from gateway.openai import headers, relay
from gateway.openai.errors import ClientGone, MethodNotAllowed
from gateway.openai.exchange import Exchange, Message, Receive, Send
from gateway.openai.relay import Patience
from gateway.openai.requests import ENDPOINTS, Endpoint, parse
from llamaproj.errors import LlamaProjError, NotAllowed, NotFound
from models_admin.models import ServedModel

log = structlog.get_logger(__name__)
# One line a request, as pages have one.
access_log = structlog.get_logger("gateway.openai.access")

_MODELS = "/v1/models"


def serves(path: str) -> bool:
    """Whether a path is this door's."""
    return path.startswith("/v1/") or path in {"/v1", "/tokenize", "/apply-template"}


async def application(scope: Message, receive: Receive, send: Send) -> None:
    """Serve one request."""
    exchange = Exchange(scope, receive, send)
    began = time.monotonic()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=exchange.request_id)
    try:
        await _answer(exchange)
    except LlamaProjError as error:
        await exchange.fail(error, _allowed(exchange, error))
    except ClientGone:
        exchange.error_code = "client_gone"
    except Exception:
        # The outermost place of this door: what nobody foresaw is logged whole and told in a neutral sentence.
        log.exception("request failed", path=exchange.path)
        words = f"Something went wrong here; the logs know it as {exchange.request_id}."
        await exchange.fail(LlamaProjError(words))
    finally:
        exchange.close()
        access_log.info(
            "request_finished",
            request=f"{exchange.method} {exchange.path}",
            code=exchange.status or 499,
            error=exchange.error_code,
            ms=round((time.monotonic() - began) * 1000, 1),
        )


async def _answer(exchange: Exchange) -> None:
    headers.check_host(exchange.header(b"host"))
    if settings.SECURE_SSL_REDIRECT and not exchange.is_secure:
        raise NotAllowed("Use https:// here: keys don't travel in the open.")
    endpoint = ENDPOINTS.get(exchange.path)
    if exchange.method == "OPTIONS":
        methods = "POST" if endpoint else "GET"
        await exchange.answer(b"", headers.preflight(exchange.header(b"origin"), methods), 200)
    elif endpoint is not None:
        if exchange.method != "POST":
            raise MethodNotAllowed("Use POST here.")
        await _complete(exchange, endpoint)
    elif exchange.path == _MODELS or exchange.path.startswith(_MODELS + "/"):
        if exchange.method not in {"GET", "HEAD"}:
            raise MethodNotAllowed("Use GET here.")
        await _show_models(exchange)
    else:
        await admission.caller_of(exchange.header(b"authorization"))
        raise NotFound(f"There is no endpoint {exchange.path}.")


async def _complete(exchange: Exchange, endpoint: Endpoint) -> None:
    """Any request that a model answers."""
    caller = await _caller(exchange)
    body = parse(await exchange.body(), endpoint)
    patience = Patience(exchange)
    call = completion.Call(
        caller=caller,
        slug=body["model"],
        door=UsageRecord.Door.API,
        body=body,
        endpoint=endpoint.name,
        hops=headers.hops(exchange.header(headers.HOPS)),
        request_id=exchange.request_id,
        on_wait=patience.hear,
        on_revoked=exchange.end_soon,
    )
    async with exchange.attended():
        if call.is_streamed:
            await relay.streamed(exchange, call, patience)
        else:
            await relay.whole(exchange, call)


async def _caller(exchange: Exchange, *, fresh: bool = False) -> Caller:
    """Who holds the key. Raises `NotAuthenticated`, or `NotAllowed` for a key that opens other doors only."""
    caller = await admission.caller_of(exchange.header(b"authorization"), fresh=fresh)
    structlog.contextvars.bind_contextvars(user_id=caller.user_pk)
    if ApiKey.Scope.INFERENCE not in caller.scopes:
        raise NotAllowed("This API key isn't made for models: it lacks the scope inference.")
    return caller


async def _show_models(exchange: Exchange) -> None:
    """`GET /v1/models` and `/v1/models/<slug>`: those the key may use."""
    caller = await _caller(exchange, fresh=True)
    if caller.api_key_pk is not None:
        # What models answer leaves a record, which says it; this leaves none.
        await database_sync_to_async(keys.used)({caller.api_key_pk: timezone.now()})
    models = await admission.models_of(caller)
    slug = exchange.path[len(_MODELS) + 1 :]
    found: dict[str, Any]
    if exchange.path == _MODELS:
        found = {"object": "list", "data": [_model_object(served) for served in models]}
    else:
        one = next((served for served in models if served.slug == slug), None)
        if one is None:
            raise ModelNotFound(f"There is no model {slug!r} here.", param="model")
        found = _model_object(one)
    await exchange.answer(orjson.dumps(found), [])


def _model_object(served: ServedModel) -> dict[str, Any]:
    return {
        "id": served.slug,
        "object": "model",
        "created": int(served.created_at.timestamp()),
        "owned_by": "llamaproj",
    }


def _allowed(exchange: Exchange, error: LlamaProjError) -> headers.Headers:
    if not isinstance(error, MethodNotAllowed):
        return []
    return [(b"allow", b"POST" if exchange.path in ENDPOINTS else b"GET, HEAD")]
