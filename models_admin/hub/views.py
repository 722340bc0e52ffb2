"""The downloads page."""

from collections.abc import Callable
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.cache import patch_vary_headers
from django.views.decorators.http import require_POST, require_safe

from models_admin import access, answers
from models_admin.hub import actions as download_actions
from models_admin.hub import fragments as download_fragments
from models_admin.models import Download, Node

_MAX_QUERY = 120


@require_safe
@login_required
def index(request: HttpRequest) -> HttpResponse:
    """Search the hub, look at a repository, see what is on its way."""
    access.manager(request)
    query, name = (request.GET.get(key, "").strip()[:_MAX_QUERY] for key in ("q", "repository"))
    context = {"manager": True} | download_fragments.hub_context(query, name)
    if request.headers.get("HX-Request"):
        response = render(request, "models_admin/_downloads_hub.html", context)
    else:
        response = render(
            request, "models_admin/downloads.html", context | download_fragments.downloads_context()
        )
    patch_vary_headers(response, ["HX-Request"])
    return response


@require_POST
@login_required
def ask(request: HttpRequest) -> HttpResponse:
    """Download."""
    user = access.manager(request)
    node = get_object_or_404(Node, name=request.POST.get("node", ""))
    download = download_actions.ask(
        node,
        request.POST.get("repository", ""),
        request.POST.get("path", ""),
        projector=request.POST.get("projector", ""),
        revision=request.POST.get("revision", "") or "main",
        by=user,
    )
    words = f"{download.file_name} is on its way to {node.name}."
    return answers.changed(request, lambda: download_fragments.downloads(user), "downloads", words)


@require_POST
@login_required
def cancel(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Cancel, or throw away what a failed one has left."""
    return _acted(request, pk, download_actions.cancel, "cancelled")


@require_POST
@login_required
def retry(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Go on."""
    return _acted(request, pk, download_actions.retry, "on its way again")


def _acted(request: HttpRequest, pk: UUID, verb: Callable[..., None], done: str) -> HttpResponse:
    user = access.manager(request)
    download = get_object_or_404(Download.objects.select_related("node"), pk=pk)
    verb(download, by=user)
    words = f"{download.file_name} is {done}."
    return answers.changed(request, lambda: download_fragments.downloads(user), "downloads", words)
