"""Downloads in the admin site. What changes something goes through the same actions as every other door."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.decorators import display

from models_admin.admin_rows import ReadOnly, apply_to_each
from models_admin.hub import actions as download_actions
from models_admin.hub.fragments import WORDS
from models_admin.models import Download
from models_admin.states import DownloadState as S
from models_admin.templatetags.amounts import as_bytes

_COLOURS = {"waiting": "info", "downloading": "info", "complete": "success", "failed": "danger"}


def _name(download: Download) -> str:
    return download.file_name


class DownloadAdmin(ReadOnly, ModelAdmin):
    list_display = ("file_name", "repository", "node", "shown_state", "shown_amount", "reason", "created_at")
    list_filter = ("state", "node")
    list_select_related = ("node",)
    search_fields = ("repository",)
    actions = ("retry_downloads", "cancel_downloads")

    @admin.action(description="Retry")
    def retry_downloads(self, request: HttpRequest, queryset: QuerySet[Download]) -> None:
        """Go on with those chosen."""
        apply_to_each(request, queryset, download_actions.retry, "on its way again", _name)

    @admin.action(description="Cancel")
    def cancel_downloads(self, request: HttpRequest, queryset: QuerySet[Download]) -> None:
        """End those chosen and throw away what has come."""
        apply_to_each(request, queryset, download_actions.cancel, "cancelled", _name)

    @display(description="State", label=_COLOURS)
    def shown_state(self, download: Download) -> str:
        """The state in a word."""
        return WORDS[S(download.state)]

    @display(description="Amount")
    def shown_amount(self, download: Download) -> str:
        """How much has come of how much."""
        return f"{as_bytes(download.done_bytes)} of {as_bytes(download.size_bytes)}"
