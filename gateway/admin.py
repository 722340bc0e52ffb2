"""Usage records in the admin site, to read."""

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from gateway.limits.admin import LimitAdmin
from gateway.models import UsageRecord

__all__ = ["LimitAdmin", "UsageRecordAdmin"]


@admin.register(UsageRecord)
class UsageRecordAdmin(ModelAdmin):
    """What was used, by whom."""

    list_display = (
        "at",
        "user",
        "model_slug",
        "door",
        "status",
        "finish",
        "prompt_tokens",
        "completion_tokens",
        "first_token_ms",
        "total_ms",
    )
    list_filter = ("door", "finish", "model_slug")
    search_fields = ("user__username", "model_slug", "error_code")
    list_select_related = ("user",)
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Written by requests only."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: UsageRecord | None = None) -> bool:
        """Never changed."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: UsageRecord | None = None) -> bool:
        """Never removed by hand."""
        return False
