"""Refusals in the admin site."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from llamaproj.errors import LlamaProjError


class Refusing:
    """What a verb refuses is said on top of the page it came from; nothing has changed then."""

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Add and change."""
        return _answer(request, super().changeform_view, *args, **kwargs)  # type: ignore[misc]  # a ModelAdmin's

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Remove one."""
        return _answer(request, super().delete_view, *args, **kwargs)  # type: ignore[misc]  # a ModelAdmin's

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """The list, and what is done with those chosen in it."""
        return _answer(request, super().changelist_view, *args, **kwargs)  # type: ignore[misc]  # a ModelAdmin's


def _answer(
    request: HttpRequest, view: Callable[..., HttpResponse], *args: Any, **kwargs: Any
) -> HttpResponse:
    try:
        # The site's own log, too, knows nothing of what was refused.
        with transaction.atomic():
            return view(request, *args, **kwargs)
    except LlamaProjError as error:
        messages.error(request, error.message)
        return redirect(request.get_full_path())
