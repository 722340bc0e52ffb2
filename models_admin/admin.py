"""Models in the admin site. What changes something goes through the same actions as every other door."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.html import format_html
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from accounts.access import person
from accounts.refusing import Refusing
from models_admin import access, actions, configuration, overview, remedies, replacement
from models_admin.admin_rows import ReadOnly, apply_to_each
from models_admin.external.admin import ExternalServerAdmin
from models_admin.forms import (
    LAUNCH_GROUPS,
    LIST_FIELDS,
    MODEL_GROUPS,
    OPEN_GROUPS,
    PORTAL_GROUPS,
    LaunchForm,
    PortalConfigForm,
    ServedModelForm,
)
from models_admin.hub.admin import DownloadAdmin
from models_admin.models import (
    Download,
    ExternalServer,
    Instance,
    InstanceChange,
    ModelFile,
    Node,
    PortalConfig,
    ServedModel,
)
from models_admin.nodes import actions as node_actions
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


def fieldsets(groups: tuple[tuple[str, tuple[str, ...]], ...]) -> list[tuple[str, dict[str, Any]]]:
    """Groups of a form as the admin site has them; those that few need are folded."""
    return [
        (title, {"fields": names, "classes": () if title in OPEN_GROUPS else ("collapse",)})
        for title, names in groups
    ]


class LaunchAdmin(Refusing, ModelAdmin):
    """Forms with launch parameters, in the admin site's dress."""

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Lists are typed as on the portal's own pages."""
        if db_field.name in LIST_FIELDS:
            several = issubclass(LIST_FIELDS[db_field.name].widget, forms.Textarea)
            kwargs["widget"] = UnfoldAdminTextareaWidget() if several else UnfoldAdminTextInputWidget()
            return db_field.formfield(**kwargs | {"form_class": LIST_FIELDS[db_field.name]})
        if db_field.many_to_many:
            # The site's own, which searches.
            kwargs.pop("widget", None)
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def say_replacements(self, request: HttpRequest, form: LaunchForm) -> None:
        """Tell which running replicas the change replaces."""
        if sentence := replacement.in_words(form.replacements()):
            self.message_user(request, sentence, messages.WARNING)


def _name(served: ServedModel) -> str:
    return served.name


@admin.register(ServedModel)
class ServedModelAdmin(LaunchAdmin):
    form = ServedModelForm
    list_display = ("name", "slug", "shown_state", "min_replicas", "max_replicas", "shown_memory", "file")
    list_select_related = ("file__node", "external")
    search_fields = ("slug", "name", "file__path")
    actions = ("start_models", "stop_models", "restart_models", "help_models")
    readonly_fields = ("shown_state", "page")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ServedModel]:
        """With what the list shows."""
        return access.visible(person(request))

    def get_fieldsets(self, request: HttpRequest, obj: ServedModel | None = None) -> Any:
        """The file is chosen once; the models page offers the same with better suggestions."""
        groups = fieldsets(MODEL_GROUPS + LAUNCH_GROUPS)
        return [(None, {"fields": ("page", "shown_state") if obj else ("file",)}), *groups]

    def has_delete_permission(self, request: HttpRequest, obj: ServedModel | None = None) -> bool:
        """Only what doesn't run."""
        allowed: bool = super().has_delete_permission(request, obj)
        return allowed and (obj is None or not overview.of(obj).can_stop)

    def save_model(
        self, request: HttpRequest, obj: ServedModel, form: "ModelForm[ServedModel]", change: bool
    ) -> None:
        """Through the action that also audits and tells the node."""
        assert isinstance(form, ServedModelForm)
        # The teams, too, before the site saves them itself: else nobody would hear who may use the model now.
        by, values = person(request), form.values() | {"teams": form.cleaned_data["teams"]}
        if change:
            self.say_replacements(request, form)
            actions.change(obj, by=by, **values)
        else:
            file = values.pop("file")
            obj.pk = actions.add(file, by=by, **values).pk

    def delete_model(self, request: HttpRequest, obj: ServedModel) -> None:
        """Through the action, which refuses what runs."""
        actions.remove(obj, by=person(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        """Through the action, which refuses what runs."""
        apply_to_each(request, queryset, actions.remove, "removed", _name)

    @admin.action(description="Start")
    def start_models(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        """Start those chosen."""
        apply_to_each(request, queryset, actions.start, "asked to start", _name)

    @admin.action(description="Stop")
    def stop_models(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        """Stop those chosen."""
        apply_to_each(request, queryset, actions.stop, "asked to stop", _name)

    @admin.action(description="Restart")
    def restart_models(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        """Restart those chosen."""
        apply_to_each(request, queryset, actions.restart, "asked to restart", _name)

    @admin.action(description="Do what may help")
    def help_models(self, request: HttpRequest, queryset: QuerySet[ServedModel]) -> None:
        """Apply what each one's page suggests first."""
        apply_to_each(request, queryset, remedies.apply_first, "changed as its page suggests", _name)

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


@admin.register(PortalConfig)
class PortalConfigAdmin(LaunchAdmin):
    form = PortalConfigForm
    fieldsets = fieldsets(PORTAL_GROUPS)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """There is one row."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: PortalConfig | None = None) -> bool:
        """There is always one row."""
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The one row instead of a list."""
        return redirect("admin:models_admin_portalconfig_change", 1)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> PortalConfig:
        """The row, also before anybody has written it."""
        return PortalConfig.current()

    def save_model(
        self, request: HttpRequest, obj: PortalConfig, form: "ModelForm[PortalConfig]", change: bool
    ) -> None:
        """Through the action that also audits and tells the nodes."""
        assert isinstance(form, PortalConfigForm)
        self.say_replacements(request, form)
        configuration.change(by=person(request), **form.values())


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
class NodeAdmin(ReadOnly, LaunchAdmin):
    list_display = ("name", "address", "cpu_count", "shown_memory", "shown_alive", "last_seen")
    fields = ("name", "address", "labels", "accepts_replicas", "memory_limit_bytes")
    readonly_fields = ("name", "address")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What administrators say of a machine; the rest is what its worker says."""
        return access.may_manage(person(request))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only what is silent."""
        return access.may_manage(person(request)) and (obj is None or not obj.is_alive)

    def delete_model(self, request: HttpRequest, obj: Node) -> None:
        """Through the action, which refuses where models would lose their only file."""
        node_actions.remove(obj, by=person(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Node]) -> None:
        """Through the action, which refuses what is alive."""
        apply_to_each(request, queryset, node_actions.remove, "forgotten")

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """The machines only: what the portal has written of them goes with them, and nobody need be allowed to."""
        return [str(node) for node in objs], {Node._meta.verbose_name_plural: len(objs)}, set(), []

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """No limit below nothing."""
        least = {"min_value": 0} if db_field.name == "memory_limit_bytes" else {}
        return super().formfield_for_dbfield(db_field, request, **kwargs | least)

    def save_model(self, request: HttpRequest, obj: Node, form: "ModelForm[Node]", change: bool) -> None:
        """Through the action that also audits and tells the nodes."""
        node_actions.change(obj, by=person(request), **form.cleaned_data)

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


admin.site.register(ExternalServer, ExternalServerAdmin)
admin.site.register(Download, DownloadAdmin)
