"""Limits in the admin site, through the same actions as every other door."""

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from accounts.access import person
from gateway.limits import actions
from gateway.limits.subjects import FIELDS, called, subject_of
from gateway.models import Limit

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[Limit]
else:
    # Django's own class takes no parameter while it runs.
    _ModelForm = forms.ModelForm


class _LimitForm(_ModelForm):
    """Whom a new limit is for, said once and by nobody else."""

    def clean(self) -> dict[str, Any]:
        """Raises `ValidationError`."""
        super().clean()
        found = self.cleaned_data
        if self.errors or not self.instance._state.adding:
            return found
        chosen = [field for field in FIELDS.values() if found.get(field) is not None]
        if len(chosen) > 1:
            self.add_error(chosen[1], "A limit is for one person, team, key or model.")
        elif not chosen and Limit.objects.filter(**dict.fromkeys(FIELDS.values())).exists():
            raise ValidationError(
                "There is a limit for everybody without one of their own already: change that one, or choose whom this "
                "is for."
            )
        return found


@admin.register(Limit)
class LimitAdmin(ModelAdmin):
    """Who may use how much."""

    form = _LimitForm
    fields = (*FIELDS.values(), *actions.NUMBERS)
    autocomplete_fields = ("user", "team", "api_key", "served")
    list_display = ("shown_subject", *actions.NUMBERS, "changed_at")
    list_select_related = ("user", "team", "api_key", "served")
    search_fields: ClassVar = ["user__username", "team__name", "api_key__name", "served__slug"]

    @admin.display(description="For")
    def shown_subject(self, limit: Limit) -> str:
        """Whom it is for."""
        return called(subject_of(limit))

    def get_readonly_fields(self, request: HttpRequest, obj: Limit | None = None) -> tuple[str, ...]:
        """Whom it is for doesn't change."""
        return tuple(FIELDS.values()) if obj else ()

    def get_autocomplete_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Where it can be chosen."""
        return self.autocomplete_fields

    def save_model(self, request: HttpRequest, obj: Limit, form: _LimitForm, change: bool) -> None:
        """Through the action that also audits and has it hold everywhere."""
        numbers = {name: form.cleaned_data[name] for name in actions.NUMBERS}
        if change:
            actions.change_limit(obj, by=person(request), **numbers)
        else:
            obj.pk = actions.add_limit(subject_of(obj), by=person(request), **numbers).pk

    def delete_model(self, request: HttpRequest, obj: Limit) -> None:
        """Through the action."""
        actions.remove_limit(obj, by=person(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Limit]) -> None:
        """Through the action."""
        for limit in queryset:
            actions.remove_limit(limit, by=person(request))
