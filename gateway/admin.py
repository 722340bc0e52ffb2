"""Usage in the admin site: records to read, prices and settings through the pages' own actions."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from unfold.admin import ModelAdmin

from accounts.access import person
from gateway.limits.admin import LimitAdmin
from gateway.models import Price, UsageConfig, UsageRecord
from gateway.usage import actions

if TYPE_CHECKING:
    from django.forms import ModelForm

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


@admin.register(Price)
class PriceAdmin(ModelAdmin):
    """What tokens are said to cost."""

    list_display = ("served", "prompt_per_million", "completion_per_million")
    list_select_related = ("served",)
    search_fields = ("served__slug",)

    def get_readonly_fields(self, request: HttpRequest, obj: Price | None = None) -> tuple[str, ...]:
        """A price stays that of its model."""
        return ("served",) if obj else ()

    def save_model(self, request: HttpRequest, obj: Price, form: "ModelForm[Price]", change: bool) -> None:
        """Through the action that also audits."""
        price = actions.set_price(
            obj.served,
            by=person(request),
            prompt_per_million=obj.prompt_per_million,
            completion_per_million=obj.completion_per_million,
        )
        obj.pk = price.pk

    def delete_model(self, request: HttpRequest, obj: Price) -> None:
        """Through the action that also audits."""
        actions.remove_price(obj.served, by=person(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Price]) -> None:
        """Through the action that also audits."""
        for price in queryset.select_related("served"):
            self.delete_model(request, price)


@admin.register(UsageConfig)
class UsageConfigAdmin(ModelAdmin):
    """How long records are kept, and the currency."""

    fields = ("retention_days", "currency")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """There is one row."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: UsageConfig | None = None) -> bool:
        """There is always one row."""
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The one row instead of a list."""
        return redirect("admin:gateway_usageconfig_change", 1)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> UsageConfig:
        """The row, also before anybody has written it."""
        return UsageConfig.current()

    def save_model(
        self, request: HttpRequest, obj: UsageConfig, form: "ModelForm[UsageConfig]", change: bool
    ) -> None:
        """Through the action that also audits."""
        actions.change_config(by=person(request), **form.cleaned_data)
