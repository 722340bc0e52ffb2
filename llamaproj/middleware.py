"""What every request passes through that Django doesn't bring."""

from collections.abc import Awaitable, Callable

import structlog
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.db import DataError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils.decorators import sync_and_async_middleware
from django.utils.http import url_has_allowed_host_and_scheme

from llamaproj.errors import LlamaProjError, NotStorable

log = structlog.get_logger(__name__)

GetResponse = Callable[[HttpRequest], HttpResponseBase] | Callable[[HttpRequest], Awaitable[HttpResponseBase]]


@sync_and_async_middleware
def request_id_header(get_response: GetResponse) -> GetResponse:
    """Answer with the id under which the logs know the request."""

    def mark(response: HttpResponseBase) -> HttpResponseBase:
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        if request_id and "x-request-id" not in response:
            response["x-request-id"] = request_id
        return response

    if iscoroutinefunction(get_response):

        async def async_middleware(request: HttpRequest) -> HttpResponseBase:
            return mark(await get_response(request))

        return async_middleware

    def middleware(request: HttpRequest) -> HttpResponseBase:
        return mark(get_response(request))  # type: ignore[arg-type]  # sync here, by the check above

    return middleware


class ErrorPages:
    """Pages' one translation of `LlamaProjError`: a designed page, or a short fragment for htmx."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Pass the request on; `process_exception` does the work."""
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Show a domain error in words; leave every other exception to Django."""
        if isinstance(error, DataError):
            log.warning("a value can't be stored", path=request.path, error=str(error))
            error = NotStorable()
        if not isinstance(error, LlamaProjError):
            return None
        template = "_error.html" if request.headers.get("HX-Request") else "error.html"
        context = {"error": error, "back": _page_before(request)}
        response = render(request, template, context, status=error.status)
        if error.retry_after is not None:
            response["retry-after"] = str(max(1, round(error.retry_after)))
        return response


def _page_before(request: HttpRequest) -> str:
    """Where a person came from, if that is another page of this portal."""
    page = request.headers.get("Referer", "")
    ours = url_has_allowed_host_and_scheme(page, {request.get_host()}, require_https=request.is_secure())
    return page if ours and page != request.build_absolute_uri() else ""
