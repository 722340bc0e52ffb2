"""The pages of external servers, for administrators."""

from collections.abc import Callable
from typing import TypeVar

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from llamaproj.errors import Conflict, InvalidInput
from models_admin import access
from models_admin.external import actions as external_actions
from models_admin.external import external
from models_admin.external.forms import ExternalServerForm, ServeForm
from models_admin.models import ExternalServer

_MOST_OFFERS = 200
Result = TypeVar("Result")


@require_safe
@login_required
def index(request: HttpRequest) -> HttpResponse:
    """All servers, and the models they offer."""
    access.manager(request)
    return render(request, "models_admin/external.html", _context(request))


@require_safe
@login_required
def present(request: HttpRequest) -> HttpResponse:
    """The part of the page that changes by itself."""
    access.manager(request)
    return render(request, "models_admin/_external.html", _context(request))


@require_http_methods(["GET", "POST"])
@login_required
def add(request: HttpRequest) -> HttpResponse:
    """Make a server known, and ask it at once."""
    user = access.manager(request)
    form = ExternalServerForm(request.POST or None)
    if form.is_valid():
        values = form.values()
        server = _tried(form, lambda: external_actions.add(by=user, **values))
        if server is not None:
            _say_what_it_says(request, server)
            return redirect("external")
    status = 422 if form.errors else 200
    return render(request, "models_admin/external_edit.html", {"form": form}, status=status)


@require_http_methods(["GET", "POST"])
@login_required
def edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Change a server, and ask it at once."""
    user = access.manager(request)
    server = get_object_or_404(ExternalServer, pk=pk)
    form = ExternalServerForm(request.POST or None, instance=server)
    if form.is_valid():
        values = form.values()
        changed = _tried(form, lambda: external_actions.change(server, by=user, **values))
        if changed is not None:
            _say_what_it_says(request, changed)
            return redirect("external")
    context = {"form": form, "server": ExternalServer.objects.get(pk=pk)}
    return render(request, "models_admin/external_edit.html", context, status=422 if form.errors else 200)


@require_POST
@login_required
def check(request: HttpRequest, pk: int) -> HttpResponse:
    """Ask it now."""
    access.manager(request)
    _say_what_it_says(request, get_object_or_404(ExternalServer, pk=pk))
    return redirect("external")


@require_POST
@login_required
def enable(request: HttpRequest, pk: int) -> HttpResponse:
    """Switch it on."""
    return _acted(request, pk, external_actions.enable, "is switched on")


@require_POST
@login_required
def disable(request: HttpRequest, pk: int) -> HttpResponse:
    """Switch it off."""
    return _acted(request, pk, external_actions.disable, "is switched off; its models are stopped")


@require_POST
@login_required
def remove(request: HttpRequest, pk: int) -> HttpResponse:
    """Forget it."""
    return _acted(request, pk, external_actions.remove, "is forgotten")


@require_http_methods(["GET", "POST"])
@login_required
def serve(request: HttpRequest, pk: int) -> HttpResponse:
    """Serve the model that the query's `model` names."""
    user = access.manager(request)
    server = get_object_or_404(ExternalServer, pk=pk)
    name = request.GET.get("model", "")
    if name not in server.models_offered:
        raise Conflict(f"{server.name} doesn't offer this model at the moment.")
    suggested = {"name": external.suggest_name(name), "slug": external.suggest_slug(server, name)}
    form = ServeForm(request.POST or None, initial=suggested)
    if form.is_valid():
        values = form.values()
        served = _tried(form, lambda: external_actions.serve(server, name, by=user, **values))
        if served is not None:
            return redirect("model", slug=served.slug)
    context = {"form": form, "server": server, "name": name}
    return render(request, "models_admin/external_serve.html", context, status=422 if form.errors else 200)


def _context(request: HttpRequest) -> dict[str, object]:
    servers = ExternalServer.objects.prefetch_related("served")
    offers = external.offers()
    query = request.GET.get("q", "").strip()[:100]
    found = [offer for offer in offers if query.casefold() in offer.name.casefold()]
    return {
        "servers": servers,
        "offers": found[:_MOST_OFFERS],
        "found": len(found),
        "offered": len(offers),
        "query": query,
    }


def _tried(form: forms.BaseForm, action: Callable[[], Result]) -> Result | None:
    """Do it; a refusal becomes an error of the form."""
    try:
        return action()
    except (InvalidInput, Conflict) as error:
        form.add_error(error.param if error.param in form.fields else None, error.message)
        return None


def _acted(request: HttpRequest, pk: int, verb: Callable[..., None], done: str) -> HttpResponse:
    user = access.manager(request)
    server = get_object_or_404(ExternalServer, pk=pk)
    try:
        verb(server, by=user)
    except Conflict as error:
        messages.warning(request, error.message)
    else:
        messages.success(request, f"{server.name} {done}.")
    return redirect("external")


def _say_what_it_says(request: HttpRequest, server: ExternalServer) -> None:
    finding = external.check(server)
    say = messages.success if finding.healthy else messages.warning
    say(request, external.describe(server, finding))
