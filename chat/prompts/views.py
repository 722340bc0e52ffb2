"""The prompt library's pages."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.access import person
from chat.models import Prompt, PromptQuerySet
from chat.prompts import actions
from chat.prompts.forms import PromptForm

_PAGE = 50
_CHOICES = 100


@login_required
@require_GET
def prompts(request: HttpRequest) -> HttpResponse:
    """One's own prompts and those of one's teams; `?q=` looks in titles and texts."""
    by = person(request)
    wanted = request.GET.get("q", "").replace("\0", "").strip()
    page = Paginator(_found(request, wanted), _PAGE).get_page(request.GET.get("page"))
    shown = [prompt.pk for prompt in page]
    writable = set(Prompt.objects.writable_by(by).filter(pk__in=shown).values_list("pk", flat=True))
    return render(request, "prompts/prompts.html", {"page": page, "q": wanted, "writable": writable})


@login_required
@require_GET
def choices(request: HttpRequest) -> HttpResponse:
    """The same, to choose from under a message being written."""
    return render(request, "prompts/_choices.html", {"prompts": _found(request, "")[:_CHOICES]})


@login_required
@require_http_methods(["GET", "POST"])
def new(request: HttpRequest) -> HttpResponse:
    """Keep a prompt."""
    by = person(request)
    form = PromptForm(request.POST or None, by=by)
    if form.is_valid():
        actions.save(by=by, **form.values())
        return redirect("prompts")
    return render(request, "prompts/edit.html", {"form": form}, status=422 if form.errors else 200)


@login_required
@require_http_methods(["GET", "POST"])
def edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Write a prompt anew."""
    by = person(request)
    found = get_object_or_404(Prompt.objects.writable_by(by), pk=pk)
    form = PromptForm(request.POST or None, instance=Prompt.objects.get(pk=pk), by=by)
    if form.is_valid():
        actions.change(found, by=by, **form.values())
        return redirect("prompts")
    context = {"form": form, "prompt": found}
    return render(request, "prompts/edit.html", context, status=422 if form.errors else 200)


@login_required
@require_POST
def delete(request: HttpRequest, pk: int) -> HttpResponse:
    """Remove a prompt."""
    by = person(request)
    found = get_object_or_404(Prompt.objects.writable_by(by), pk=pk)
    actions.delete(found, by=by)
    messages.success(request, f"“{found}” is deleted.")
    return redirect("prompts")


def _found(request: HttpRequest, wanted: str) -> PromptQuerySet:
    rows = Prompt.objects.visible_to(person(request)).select_related("team", "owner")
    if wanted:
        rows = rows.filter(Q(title__icontains=wanted) | Q(text__icontains=wanted))
    return rows
