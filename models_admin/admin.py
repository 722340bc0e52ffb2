"""Models in the admin site. What changes something goes through the same actions as every other door."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from accounts.access import person
from llamaproj.errors import LlamaProjError
from models_admin import access, actions, overview
from models_admin.forms import ServedModelForm
from models_admin.models import Instance, InstanceChange, ModelFile, Node, ServedModel
from models_admin.templatetags.amounts import age, as_bytes, as_count

# Unfold's colours for a state's word.
_COLOURS = {
    "ready": "success",
    "loading": "info",
    "waiting": "info",
    "stopping": "warning",
    "starting again": "warning",
    "crashed": "danger",
    "failed": "danger",
}


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


class _ServedForm(ServedModelForm):
    flags = forms.CharField(required=False, label="Further flags", widget=UnfoldAdminTextInputWidget)


@admin.register(ServedModel)
class ServedModelAdmin(ModelAdmin):
    form = _ServedForm
    list_display = ("name", "slug", "shown_state", "desired_replicas", "shown_memory", "file")
    list_select_related = ("file__node",)
    search_fields = ("slug", "name", "file__path")
    actions = ("start_models", "stop_models", "restart_models")
    readonly_fields = ("shown_state", "page")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ServedModel]:
        """With what the list shows."""
        return access.visible(person(request))

    def get_fields(self, request: HttpRequest, obj: ServedModel | None = None) -> tuple[str, ...]:
        """The file is chosen once; the models page offers the same with better suggestions."""
        own = (*ServedModelForm.Meta.fields, "flags")
        return ("page", "shown_state", *own) if obj else ("file", *own)

    def get_form(
        self, request: HttpRequest, obj: ServedModel | None = None, change: bool = False, **kw: Any
    ) -> Any:
        """Adding asks for the file, too."""
        if obj is None:
            kw["fields"] = ("file", *ServedModelForm.Meta.fields)
        return super().get_form(request, obj, change, **kw)

    def has_delete_permission(self, request: HttpRequest, obj: ServedModel | None = None) -> bool:
        """Only what doesn't run."""
        allowed: bool = super().has_delete_permission(request, obj)
        return allowed and (obj is None or not overview.of(obj).can_stop)

    def save_model(
        self, request: HttpRequest, obj: ServedModel, form: "ModelForm[ServedModel]", change: bool
    ) -> None:
        """Through the action that also audits and tells the node."""
        assert isinstance(form, ServedModelForm)
        by = person(request)
        if change:
            row = ServedModel.objects.select_related("file__node").get(pk=obj.pk)
            actions.change(row, by=by, **form.values())
        else:
            values = form.values()
            file = values.pop("file")
            obj.pk = actions.add(file, by=by, **values).pk

    def delete_model(self, request: HttpRequest, obj: ServedModel) -> None:
        """Through the action, which refuses what runs."""
        actions.remove(obj, by=person(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        """Through the action, which refuses what runs."""
        self._each(request, queryset, actions.remove, "removed")

    @admin.action(description="Start")
    def start_models(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        """Start those chosen."""
        self._each(request, queryset, actions.start, "asked to start")

    @admin.action(description="Stop")
    def stop_models(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        """Stop those chosen."""
        self._each(request, queryset, actions.stop, "asked to stop")

    @admin.action(description="Restart")
    def restart_models(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        """Restart those chosen."""
        self._each(request, queryset, actions.restart, "asked to restart")

    @display(description="State", label=_COLOURS)
    def shown_state(self, served: ServedModel) -> str:
        """The state in a word."""
        return overview.of(served).word

    @display(description="Memory")
    def shown_memory(self, served: ServedModel) -> str:
        """What it takes, or will."""
        seen = overview.of(served)
        return as_bytes(seen.memory_bytes) if seen.memory_bytes else f"≈ {as_bytes(seen.estimated_bytes)}"

    @display(description="Page")
    def page(self, served: ServedModel) -> str:
        """The way to the model's own page with its log."""
        return format_html(
            '<a href="{}">Replicas, timeline and log</a>', reverse("model", args=[served.slug])
        )

    def _each(
        self, request: HttpRequest, queryset: QuerySet[ServedModel], verb: Callable[..., None], done: str
    ) -> None:
        for served in queryset:
            try:
                verb(served, by=person(request))
            except LlamaProjError as error:
                self.message_user(request, error.message, messages.ERROR)
            else:
                self.message_user(request, f"{served.name}: {done}.", messages.SUCCESS)


@admin.register(ModelFile)
class ModelFileAdmin(ReadOnly, ModelAdmin):
    list_display = (
        "path",
        "node",
        "architecture",
        "shown_parameters",
        "quantization",
        "shown_size",
        "problem",
    )
    list_filter = ("node", "missing", "architecture")
    list_select_related = ("node",)
    search_fields = ("path", "name")
    actions = ("scan_folders",)

    @admin.action(description="Scan all machines' folders")
    def scan_folders(self, request: HttpRequest, queryset: QuerySet[ModelFile]) -> None:
        """Look again, whatever is chosen."""
        actions.scan(by=person(request))
        self.message_user(request, "The folders are being read.", messages.INFO)

    @display(description="Parameters")
    def shown_parameters(self, file: ModelFile) -> str:
        """In thousands, millions, billions."""
        return as_count(file.parameters)

    @display(description="Size")
    def shown_size(self, file: ModelFile) -> str:
        """In binary units."""
        return as_bytes(file.size_bytes)

    @display(description="Problem")
    def problem(self, file: ModelFile) -> str:
        """Why it can't be served."""
        return "It isn't there any more." if file.missing else file.error


@admin.register(Node)
class NodeAdmin(ReadOnly, ModelAdmin):
    list_display = ("name", "address", "cpu_count", "shown_memory", "shown_alive", "last_seen")

    @display(description="Memory")
    def shown_memory(self, node: Node) -> str:
        """In binary units."""
        return as_bytes(node.memory_bytes)

    @display(description="Alive", boolean=True)
    def shown_alive(self, node: Node) -> bool:
        """Whether its worker announces itself."""
        return node.is_alive


class ChangeInline(ReadOnly, TabularInline):
    model = InstanceChange
    fields = ("at", "old", "new", "reason")
    readonly_fields = fields
    extra = 0


@admin.register(Instance)
class InstanceAdmin(ReadOnly, ModelAdmin):
    list_display = ("served", "node", "shown_state", "shown_age", "port", "pid", "shown_memory", "crashes")
    list_filter = ("state", "node")
    list_select_related = ("served", "node")
    inlines = (ChangeInline,)

    @display(description="State", label=_COLOURS)
    def shown_state(self, instance: Instance) -> str:
        """The state in a word."""
        return overview.word_of(instance)

    @display(description="Since")
    def shown_age(self, instance: Instance) -> str:
        """How long it is in that state."""
        return age(instance.state_since)

    @display(description="Memory")
    def shown_memory(self, instance: Instance) -> str:
        """What its process takes."""
        return as_bytes(instance.memory_bytes)
