"""External servers in the admin site. What changes something goes through the same actions as every other door."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.forms import ActionForm
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldAdminTextInputWidget

from accounts.access import person
from accounts.refusing import Refusing
from models_admin.admin_rows import apply_to_each
from models_admin.external import actions as external_actions
from models_admin.external import tasks as external_tasks
from models_admin.external.forms import ExternalServerForm
from models_admin.models import ExternalServer
from models_admin.templatetags.amounts import age

_COLOURS = {"answers": "success", "being asked": "info", "out of reach": "danger"}


class _ServerForm(ExternalServerForm):
    api_key = forms.CharField(
        required=False,
        max_length=500,
        label="Key",
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
    )

    class Meta(ExternalServerForm.Meta):
        widgets = {"name": UnfoldAdminTextInputWidget, "base_url": UnfoldAdminTextInputWidget}


class _ActionForm(ActionForm):
    """With the name of a model, for the action that serves one."""

    model = forms.CharField(
        required=False,
        max_length=200,
        label="",
        widget=UnfoldAdminTextInputWidget(
            attrs={"placeholder": "a model's name, to serve it", "aria-label": "Model", "spellcheck": "false"}
        ),
    )


class ExternalServerAdmin(Refusing, ModelAdmin):
    form = _ServerForm
    action_form = _ActionForm
    list_display = ("name", "base_url", "shown_state", "shown_models", "shown_checked", "problem")
    list_filter = ("enabled", "healthy")
    search_fields = ("name", "base_url")
    actions = ("enable_servers", "disable_servers", "check_servers", "serve_model")

    def get_fields(self, request: HttpRequest, obj: ExternalServer | None = None) -> tuple[str, ...]:
        """A key that isn't there can't be forgotten."""
        own = ("name", "base_url", "api_key")
        return (*own, "forget_key") if obj and obj.has_key else own

    def get_form(
        self, request: HttpRequest, obj: ExternalServer | None = None, change: bool = False, **kw: Any
    ) -> Any:
        """The fields that aren't the row's own are declared in the form."""
        return super().get_form(request, obj, change, **kw | {"fields": ("name", "base_url")})

    def save_model(
        self, request: HttpRequest, obj: ExternalServer, form: "ModelForm[ExternalServer]", change: bool
    ) -> None:
        """Through the action that also audits and has the server asked."""
        assert isinstance(form, ExternalServerForm)
        by = person(request)
        if change:
            external_actions.change(obj, by=by, **form.values())
        else:
            obj.pk = external_actions.add(by=by, **form.values()).pk

    def delete_model(self, request: HttpRequest, obj: ExternalServer) -> None:
        """Through the action, which refuses what serves models."""
        external_actions.remove(obj, by=person(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ExternalServer]) -> None:
        """Through the action, which refuses what serves models."""
        apply_to_each(request, queryset, external_actions.remove, "removed")

    @admin.action(description="Switch on")
    def enable_servers(self, request: HttpRequest, queryset: QuerySet[ExternalServer]) -> None:
        """Switch on those chosen."""
        apply_to_each(request, queryset, external_actions.enable, "switched on")

    @admin.action(description="Switch off")
    def disable_servers(self, request: HttpRequest, queryset: QuerySet[ExternalServer]) -> None:
        """Switch off those chosen."""
        apply_to_each(request, queryset, external_actions.disable, "switched off")

    @admin.action(description="Ask for their models")
    def check_servers(self, request: HttpRequest, queryset: QuerySet[ExternalServer]) -> None:
        """Have those chosen asked by a worker."""
        for server in queryset.filter(enabled=True):
            external_tasks.check_soon(server.pk)
        self.message_user(request, "They are being asked.", messages.INFO)

    @admin.action(description="Serve the model named here")
    def serve_model(self, request: HttpRequest, queryset: QuerySet[ExternalServer]) -> None:
        """Serve it from each of those chosen, for everybody until its own page says otherwise."""
        model = request.POST.get("model", "").strip()
        apply_to_each(
            request,
            queryset,
            lambda server, by: external_actions.serve(server, model, by=by),
            f"{model} is served",
        )

    @display(description="State", label=_COLOURS)
    def shown_state(self, server: ExternalServer) -> str:
        """The state in a word."""
        return server.word

    @display(description="Models")
    def shown_models(self, server: ExternalServer) -> int:
        """How many it offers."""
        return len(server.models_offered)

    @display(description="Asked")
    def shown_checked(self, server: ExternalServer) -> str:
        """When it was last asked."""
        return f"{age(server.checked_at)} ago" if server.checked_at else "not yet"
