"""What a form gets back: the piece of the page that changed; without scripts the page, with what was done in words."""

from collections.abc import Callable

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.cache import patch_vary_headers


def changed(
    request: HttpRequest, piece: Callable[[], str], page: str, words: str = "", **page_arguments: object
) -> HttpResponse:
    """`piece` draws the fragment for htmx; a plain form is sent to the page of the URL named `page`, with `words`."""
    if request.headers.get("HX-Request"):
        response = HttpResponse(piece())
    else:
        if words:
            messages.success(request, words)
        response = redirect(reverse(page, kwargs=page_arguments))
    patch_vary_headers(response, ["HX-Request"])
    return response
