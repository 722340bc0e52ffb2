"""The OpenAI-compatible door: parse, authenticate, run the one path, translate errors."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from functools import wraps
from typing import Any

import orjson
import structlog
from channels.db import database_sync_to_async
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt

from accounts.models import ApiKey
from gateway import completion, keys, sse
from gateway.errors import ModelNotFound
from gateway.models import UsageRecord
from gateway.upstream import HOPS_HEADER
from llamaproj.errors import InvalidInput, LlamaProjError, NotFound
from models_admin.models import ServedModel

log = structlog.get_logger(__name__)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}

View = Callable[..., Coroutine[Any, Any, HttpResponseBase]]


def error_object(error: LlamaProjError) -> dict[str, Any]:
    """The error as the OpenAI API spells it."""
    kind = _TYPES.get(error.status, "server_error")
    return {"error": {"message": error.message, "type": kind, "code": error.code, "param": error.param}}


def _error_response(error: LlamaProjError) -> HttpResponse:
    response = HttpResponse(orjson.dumps(error_object(error)), "application/json", status=error.status)
    if error.retry_after is not None:
        response["retry-after"] = str(max(1, round(error.retry_after)))
    return response


def endpoint(*methods: str) -> Callable[[View], View]:
    """A view for holders of an API key, whose errors are OpenAI's objects. Passes the key as second argument."""

    def decorate(view: View) -> View:
        @csrf_exempt
        @wraps(view)
        async def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            try:
                if request.method not in methods:
                    raise MethodNotAllowed(f"Use {' or '.join(methods)} here.")
                key = await keys.authenticate(request.headers.get("authorization", ""))
                return await view(request, key, *args, **kwargs)
            except LlamaProjError as error:
                return _error_response(error)
            except RequestDataTooBig:
                return _error_response(BodyTooLarge())
            except Exception:
                # The outermost place of this door: what nobody foresaw is logged whole and told in a neutral sentence.
                log.exception("request failed", path=request.path)
                request_id = structlog.contextvars.get_contextvars().get("request_id", "unknown")
                return _error_response(
                    LlamaProjError(f"Something went wrong here; the logs know it as {request_id}.")
                )

        return wrapped

    return decorate


class BodyTooLarge(InvalidInput):
    """The request body is larger than 16 MiB."""

    code = "body_too_large"
    status = 413


class MethodNotAllowed(LlamaProjError):
    """This URL doesn't know that method."""

    code = "method_not_allowed"
    status = 405


@endpoint("GET", "POST")
async def unknown(request: HttpRequest, key: ApiKey, rest: str = "") -> HttpResponseBase:
    """Whatever isn't served here."""
    raise NotFound(f"There is no endpoint {request.path}.")


@endpoint("GET")
async def models(request: HttpRequest, key: ApiKey) -> HttpResponseBase:
    """`GET /v1/models`: those the key's owner may use."""

    @database_sync_to_async
    def visible() -> list[ServedModel]:
        return list(ServedModel.objects.visible_to(key.user).wanted())

    data = [_model_object(served) for served in await visible()]
    return HttpResponse(orjson.dumps({"object": "list", "data": data}), "application/json")


@endpoint("GET")
async def model(request: HttpRequest, key: ApiKey, slug: str) -> HttpResponseBase:
    """`GET /v1/models/<slug>`."""
    return HttpResponse(orjson.dumps(_model_object(await _served(key, slug))), "application/json")


@endpoint("POST")
async def chat_completions(request: HttpRequest, key: ApiKey) -> HttpResponseBase:
    """`POST /v1/chat/completions`, streamed or whole."""
    body = _parse(request.body)
    call = completion.Call(
        user=key.user,
        served=await _served(key, body["model"]),
        door=UsageRecord.Door.API,
        body=body,
        api_key=key,
        hops=_hops(request),
    )
    if not body.get("stream"):
        async with completion.run(call) as stream:
            response = HttpResponse(stream.whole(), "application/json")
            return _with_headers(response, stream)
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(completion.run(call))
        streaming = StreamingHttpResponse(
            _events(stream, stack.pop_all()),
            content_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        return _with_headers(streaming, stream)


async def _events(stream: completion.Stream, stack: AsyncExitStack) -> AsyncIterator[bytes]:
    """The answer as server-sent events; an error in mid-stream is one more event."""
    async with stack:
        try:
            async for block in stream.blocks():
                yield block
        except LlamaProjError as error:
            stream.meter.fail(error)
            log.warning("stream broke off", code=error.code, instance=str(stream.replica.pk))
            yield sse.event(orjson.dumps(error_object(error)))


def _with_headers(response: HttpResponseBase, stream: completion.Stream) -> HttpResponseBase:
    response["x-llamaproj-instance"] = str(stream.replica.pk)
    response["x-llamaproj-queue-ms"] = f"{stream.meter.queue_ms:.1f}"
    return response


def _hops(request: HttpRequest) -> int:
    """How many portals the request has passed through."""
    said = request.headers.get(HOPS_HEADER, "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 4 else 0


def _parse(data: bytes) -> dict[str, Any]:
    """A chat request with the fields that must be right for routing; the engine checks the rest."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"The body isn't valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidInput("The body must be a JSON object.")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise InvalidInput("Name a model.", param="model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("Send at least one message.", param="messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidInput("Each message is an object with a role.", param=f"messages[{place}]")
    if not isinstance(body.get("stream", False), bool | None):
        raise InvalidInput("stream is true or false.", param="stream")
    return body


@database_sync_to_async
def _served(key: ApiKey, slug: str) -> ServedModel:
    served = ServedModel.objects.visible_to(key.user).filter(slug=slug).first()
    if served is None:
        raise ModelNotFound(f"There is no model {slug!r} here.", param="model")
    return served


def _model_object(served: ServedModel) -> dict[str, Any]:
    return {
        "id": served.slug,
        "object": "model",
        "created": int(served.created_at.timestamp()),
        "owned_by": "llamaproj",
    }
