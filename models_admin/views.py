"""The pages of models."""

from collections.abc import Callable
from datetime import timedelta

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.cache import patch_vary_headers
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts.access import person
from models_admin import access, actions, configuration, fragments, replacement
from models_admin.engine import launch_config, launch_rules
from models_admin.errors import StillRunning
from models_admin.forms import NewModelForm, PortalConfigForm, ServedModelForm
from models_admin.models import ModelFile, PortalConfig, ServedModel
from models_admin.replacement import Replacement
from models_admin.templatetags.amounts import span

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
    portal = PortalConfig.current()
    idle_timeout = span(timedelta(seconds=served.idle_timeout_s or portal.idle_timeout_s))
    context = fragments.replicas_context(served)
    context |= {"config": launch_config.of(served, portal), "idle_timeout": idle_timeout}
    if manager:
        choice = fragments.LogChoice.of(request.GET)
        context |= fragments.log_context(served, choice) | fragments.slots_context(served)
        context |= fragments.diagnosis_context(served)
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
    """Serve it no more; of one that runs the page says that it must be stopped first."""
    user = access.manager(request)
    served = access.find_visible(user, slug)
    kept = "server" if served.external else "file"
    try:
        actions.remove(served, by=user)
    except StillRunning as error:
        messages.warning(request, error.message)
        return redirect("model", slug)
    messages.success(request, f"{served.name} is served no more; its {kept} is still there.")
    return redirect("models")


@require_POST
@login_required
def scan(request: HttpRequest) -> HttpResponse:
    """Look for files on every node."""
    actions.scan(by=access.manager(request))
    messages.info(request, "The folders are being read; new files appear below.")
    return redirect("models")


@require_http_methods(["GET", "POST"])
@login_required
def add(request: HttpRequest, pk: int) -> HttpResponse:
    """Serve a file."""
    user = access.manager(request)
    file = get_object_or_404(ModelFile.objects.select_related("node"), pk=pk)
    form = NewModelForm(request.POST or None, instance=ServedModel(file=file), initial=actions.suggest(file))
    if form.is_valid():
        with transaction.atomic():
            served = actions.add(file, by=user, teams=form.cleaned_data["teams"], **form.values())
            if form.cleaned_data["start_now"]:
                actions.start(served, by=user)
        _say_doubts(request, served)
        return redirect("model", slug=served.slug)
    context = {"form": form, "file": file}
    return render(request, "models_admin/edit.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "POST"])
@login_required
def edit(request: HttpRequest, slug: str) -> HttpResponse:
    """Change a model's settings. What replaces running replicas is asked once more."""
    user = access.manager(request)
    served = access.find_visible(user, slug)
    form = ServedModelForm(request.POST or None, instance=served)
    context = {"form": form, "file": served.file, "served": served}
    if not form.is_valid():
        return render(request, "models_admin/edit.html", context, status=422 if form.errors else 200)
    replacements = form.replacements()
    if unconfirmed := _unconfirmed(request, replacements):
        return render(request, "models_admin/edit.html", context | unconfirmed)
    actions.change(served, by=user, teams=form.cleaned_data["teams"], **form.values())
    messages.success(request, f"Saved. {replacement.in_words(replacements)}".strip())
    _say_doubts(request, served)
    return redirect("model", slug=slug)


@require_http_methods(["GET", "POST"])
@login_required
def config(request: HttpRequest) -> HttpResponse:
    """The portal's configuration. What replaces running replicas is asked once more."""
    user = access.manager(request)
    form = PortalConfigForm(request.POST or None, instance=PortalConfig.current())
    if not form.is_valid():
        status = 422 if form.errors else 200
        return render(request, "models_admin/config.html", {"form": form}, status=status)
    replacements = form.replacements()
    if unconfirmed := _unconfirmed(request, replacements, form.instance):
        return render(request, "models_admin/config.html", {"form": form} | unconfirmed)
    configuration.change(by=user, **form.values())
    messages.success(request, f"Saved. {replacement.in_words(replacements)}".strip())
    return redirect("models-config")


def _unconfirmed(
    request: HttpRequest, replacements: list[Replacement], portal: PortalConfig | None = None
) -> dict[str, object]:
    """What a page says of what would be replaced; empty where nothing is or the person has agreed to just that."""
    digest = replacement.digest(replacements, portal)
    if not replacements or request.POST.get("confirmed") == digest:
        return {}
    return {"replaces": replacement.in_words(replacements), "confirmed": digest}


def _say_doubts(request: HttpRequest, served: ServedModel) -> None:
    for doubt in launch_rules.doubts(served):
        messages.warning(request, doubt)


def _acted(request: HttpRequest, slug: str, verb: Verb) -> HttpResponse:
    """Do it; answer with the piece of the page that shows it, or go back to the page."""
    user = access.manager(request)
    served = access.find_visible(user, slug)
    verb(served, by=user)
    own_page = request.headers.get("HX-Target", "").endswith("model-head")
    if not request.headers.get("HX-Request"):
        return redirect("models")
    fresh = access.find_visible(user, slug)
    response = HttpResponse(fragments.head(user, fresh) if own_page else fragments.model(user, fresh))
    patch_vary_headers(response, ["HX-Request", "HX-Target"])
    return response
