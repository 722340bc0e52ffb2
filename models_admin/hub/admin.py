"""Downloads in the admin site. What changes something goes through the same actions as every other door."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from accounts.access import person
from accounts.refusing import Refusing
from llamaproj.errors import LlamaProjError
from models_admin import access
from models_admin.admin_rows import ReadOnly, apply_to_each
from models_admin.hub import actions as download_actions
from models_admin.hub import hub
from models_admin.hub.fragments import WORDS
from models_admin.models import Download
from models_admin.states import DownloadState as S
from models_admin.templatetags.amounts import as_bytes

_COLOURS = {"waiting": "info", "downloading": "info", "complete": "success", "failed": "danger"}


class _AskForm(forms.ModelForm):  # type: ignore[type-arg]  # Django's own class takes no parameter while it runs
    """What is to be fetched, and where to."""

    path = forms.CharField(
        max_length=500,
        label="File",
        help_text="As the hub names it; of a model in parts the first one.",
        widget=UnfoldAdminTextInputWidget(attrs={"spellcheck": "false"}),
    )
    projector = forms.CharField(
        max_length=500,
        required=False,
        help_text="A file that lets the model see pictures, if there is one.",
        widget=UnfoldAdminTextInputWidget(attrs={"spellcheck": "false"}),
    )

    class Meta:
        model = Download
        fields = ("node", "repository")
        help_texts = {"repository": "owner/name on the hub."}

    def clean(self) -> dict[str, Any]:
        """Ask the hub whether it is there."""
        said: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors:
            try:
                found = hub.look(said["repository"])
                download_actions.wanted(
                    found,
                    found.choice(said["path"]),
                    found.choice(said["projector"]) if said["projector"] else None,
                )
            except LlamaProjError as error:
                raise forms.ValidationError(error.message) from error
        return said


def _name(download: Download) -> str:
    return download.file_name


class DownloadAdmin(ReadOnly, Refusing, ModelAdmin):
    list_display = ("file_name", "repository", "node", "shown_state", "shown_amount", "reason", "created_at")
    list_filter = ("state", "node")
    list_select_related = ("node",)
    search_fields = ("repository",)
    actions = ("retry_downloads", "cancel_downloads")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Who manages models may have one fetched."""
        return access.may_manage(person(request))

    def get_fields(self, request: HttpRequest, obj: Download | None = None) -> Any:
        """What is asked for; of what was asked for, everything."""
        return super().get_fields(request, obj) if obj else ("node", "repository", "path", "projector")

    def get_form(
        self, request: HttpRequest, obj: Download | None = None, change: bool = False, **kw: Any
    ) -> Any:
        """The fields that aren't the row's own are declared in the form."""
        asking = {} if obj else {"form": _AskForm, "fields": ("node", "repository")}
        return super().get_form(request, obj, change, **kw | asking)

    def save_model(self, request: HttpRequest, obj: Download, form: Any, change: bool) -> None:
        """Through the action that also audits and tells the node."""
        said = form.cleaned_data
        asked = download_actions.ask(
            obj.node, obj.repository, said["path"], projector=said["projector"], by=person(request)
        )
        obj.pk, obj.files = asked.pk, asked.files

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
