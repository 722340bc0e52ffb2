"""Downloads in the admin site. What changes something goes through the same actions as every other door."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.decorators import display

from accounts.access import person
from llamaproj.errors import LlamaProjError
from models_admin.hub import actions as download_actions
from models_admin.hub.fragments import WORDS
from models_admin.models import Download
from models_admin.states import DownloadState as S
from models_admin.templatetags.amounts import as_bytes

_COLOURS = {"waiting": "info", "downloading": "info", "complete": "success", "failed": "danger"}


class DownloadAdmin(ModelAdmin):
    list_display = ("file_name", "repository", "node", "shown_state", "shown_amount", "reason", "created_at")
    list_filter = ("state", "node")
    list_select_related = ("node",)
    search_fields = ("repository",)
    actions = ("retry_downloads", "cancel_downloads")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The downloads page makes them."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes them."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Cancelled ones remove themselves from the disk; their rows are history."""
        return False

    @admin.action(description="Retry")
    def retry_downloads(self, request: HttpRequest, queryset: QuerySet[Download]) -> None:
        """Go on with those chosen."""
        self._each(request, queryset, download_actions.retry, "on its way again")

    @admin.action(description="Cancel")
    def cancel_downloads(self, request: HttpRequest, queryset: QuerySet[Download]) -> None:
        """End those chosen and throw away what has come."""
        self._each(request, queryset, download_actions.cancel, "cancelled")

    @display(description="State", label=_COLOURS)
    def shown_state(self, download: Download) -> str:
        """The state in a word."""
        return WORDS[S(download.state)]

    @display(description="Amount")
    def shown_amount(self, download: Download) -> str:
        """How much has come of how much."""
        return f"{as_bytes(download.done_bytes)} of {as_bytes(download.size_bytes)}"

    def _each(
        self, request: HttpRequest, queryset: QuerySet[Download], verb: Callable[..., None], done: str
    ) -> None:
        for download in queryset:
            try:
                verb(download, by=person(request))
            except LlamaProjError as error:
                self.message_user(request, error.message, messages.ERROR)
            else:
                self.message_user(request, f"{download.file_name}: {done}.", messages.SUCCESS)
