"""Rows in the admin site: those that nobody edits there, and verbs applied to those chosen."""

from collections.abc import Callable, Iterable
from typing import Any

from django.contrib import messages
from django.db.models import Model
from django.http import HttpRequest

from accounts.access import person
from llamaproj.errors import LlamaProjError


class ReadOnly:
    """Rows that the portal writes itself."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody adds them."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes them."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody deletes them."""
        return False


def apply_to_each(
    request: HttpRequest,
    rows: Iterable[Model],
    verb: Callable[..., object],
    done: str,
    name: Callable[[Any], str] = str,
) -> None:
    """Do `verb` with each row as the person who asks, and say of each how it went. `done`: what it is then."""
    for row in rows:
        called = name(row)
        try:
            verb(row, by=person(request))
        except LlamaProjError as error:
            messages.error(request, error.message)
        else:
            messages.success(request, f"{called}: {done}.")
