"""The pages of models."""

from collections.abc import Callable

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.cache import patch_vary_headers
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts.access import person
from accounts.models import User
from models_admin import access, actions, fragments, overview
from models_admin.forms import ServedModelForm
from models_admin.models import ModelFile, ServedModel

Verb = Callable[..., None]


@require_safe
@login_required
def index(request: HttpRequest) -> HttpResponse:
    """All models a person may use; for managers the files, too."""
    user = person(request)
    manager = access.may_manage(user)
    context = fragments.models_context(user) | (fragments.files_context() if manager else {})
    return render(request, "models_admin/models.html", context | {"manager": manager})


@require_safe
@login_required
def detail(request: HttpRequest, slug: str) -> HttpResponse:
    """One model: how it is set up, what runs of it, what it says."""
    user = person(request)
    served = access.find_visible(user, slug)
    manager = access.may_manage(user)
    context = fragments.replicas_context(served) | (fragments.log_context(served) if manager else {})
    return render(request, "models_admin/model.html", context | {"manager": manager, "served": served})


@require_POST
@login_required
def start(request: HttpRequest, slug: str) -> HttpResponse:
    """Start."""
    return _acted(request, slug, actions.start)


@require_POST
@login_required
def stop(request: HttpRequest, slug: str) -> HttpResponse:
    """Stop."""
    return _acted(request, slug, actions.stop)


@require_POST
@login_required
def restart(request: HttpRequest, slug: str) -> HttpResponse:
    """Restart."""
    return _acted(request, slug, actions.restart)


@require_POST
@login_required
def remove(request: HttpRequest, slug: str) -> HttpResponse:
    """Serve it no more."""
    user = _manager(request)
    served = access.find_visible(user, slug)
    actions.remove(served, by=user)
    messages.success(request, f"{served.name} is served no more; its file is still there.")
    return redirect("models")


@require_POST
@login_required
def scan(request: HttpRequest) -> HttpResponse:
    """Look for files on every node."""
    actions.scan(by=_manager(request))
    messages.info(request, "The folders are being read; new files appear below.")
    return redirect("models")


@require_http_methods(["GET", "POST"])
@login_required
def add(request: HttpRequest, pk: int) -> HttpResponse:
    """Serve a file."""
    user = _manager(request)
    file = get_object_or_404(ModelFile.objects.select_related("node"), pk=pk)
    form = ServedModelForm(request.POST or None, initial=actions.suggest(file) | {"desired_replicas": 1})
    if form.is_valid():
        served = actions.add(file, by=user, teams=form.cleaned_data["teams"], **form.values())
        return redirect("model", slug=served.slug)
    return render(
        request, "models_admin/edit.html", {"form": form, "file": file}, status=422 if form.errors else 200
    )


@require_http_methods(["GET", "POST"])
@login_required
def edit(request: HttpRequest, slug: str) -> HttpResponse:
    """Change a model's settings."""
    user = _manager(request)
    served = access.find_visible(user, slug)
    form = ServedModelForm(request.POST or None, instance=served)
    if form.is_valid():
        # The form has written its values into its own copy; the action compares with the row.
        row = ServedModel.objects.select_related("file__node").get(pk=served.pk)
        actions.change(row, by=user, teams=form.cleaned_data["teams"], **form.values())
        if overview.of(access.find_visible(user, slug)).replicas:
            messages.info(request, "Saved. What runs keeps its old settings until it is restarted.")
        return redirect("model", slug=slug)
    context = {"form": form, "file": served.file, "served": served}
    return render(request, "models_admin/edit.html", context, status=422 if form.errors else 200)


def _acted(request: HttpRequest, slug: str, verb: Verb) -> HttpResponse:
    """Do it; answer with the piece of the page that shows it, or go back to the page."""
    user = _manager(request)
    served = access.find_visible(user, slug)
    verb(served, by=user)
    own_page = request.headers.get("HX-Target", "").endswith("model-head")
    if not request.headers.get("HX-Request"):
        return redirect("models")
    fresh = access.find_visible(user, slug)
    response = HttpResponse(fragments.head(user, fresh) if own_page else fragments.model(user, fresh))
    patch_vary_headers(response, ["HX-Request", "HX-Target"])
    return response


def _manager(request: HttpRequest) -> User:
    user = person(request)
    access.require_manager(user)
    return user
