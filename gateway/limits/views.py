"""The pages of limits: one's own with what is used of them, and everybody's for administrators."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts.access import person
from accounts.models import User
from gateway.limits import actions, use
from gateway.limits.forms import LimitForm, NumbersForm
from gateway.limits.subjects import KINDS, called, kind_of, subject_of
from gateway.models import Limit
from llamaproj.errors import LlamaProjError, NotAllowed


@never_cache
@require_safe
@login_required
def own(request: HttpRequest) -> HttpResponse:
    """What binds the person, and how much of it is used."""
    context = {"page": "limits", "limits": use.own_limits(person(request))}
    return render(request, "limits/own.html", context)


@never_cache
@require_safe
@login_required
def own_now(request: HttpRequest) -> HttpResponse:
    """The part of the page that changes by itself."""
    return render(request, "limits/_uses.html", {"limits": use.own_limits(person(request))})


@require_safe
@login_required
def index(request: HttpRequest) -> HttpResponse:
    """All limits."""
    _administrator(request)
    rows = [
        (limit, KINDS.get(kind_of(limit), ""), called(subject_of(limit)), _numbers(limit))
        for limit in Limit.objects.select_related("user", "team", "api_key__user", "served")
    ]
    rows.sort(key=lambda row: (row[1] != "", row[1], row[2].casefold()))
    return render(request, "limits/limits.html", {"page": "all-limits", "rows": rows})


@require_http_methods(["GET", "POST"])
@login_required
def add(request: HttpRequest) -> HttpResponse:
    """Limit somebody or something."""
    user = _administrator(request)
    form = LimitForm(request.POST or None)
    if form.is_valid():
        try:
            limit = actions.add_limit(form.found(), by=user, **form.numbers())
        except LlamaProjError as error:
            form.add_error(error.param if error.param in form.fields else None, error.message)
        else:
            messages.success(request, f"The limit {limit} holds from the next request on.")
            return redirect("limits")
    return _edited(request, form, None)


@require_http_methods(["GET", "POST"])
@login_required
def edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Change a limit's numbers."""
    user = _administrator(request)
    limit = get_object_or_404(Limit, pk=pk)
    form = NumbersForm(request.POST or None, instance=Limit.objects.get(pk=pk))
    if form.is_valid():
        actions.change_limit(limit, by=user, **form.numbers())
        messages.success(request, f"The limit {limit} holds from the next request on.")
        return redirect("limits")
    return _edited(request, form, limit)


@require_POST
@login_required
def remove(request: HttpRequest, pk: int) -> HttpResponse:
    """Let it through again."""
    user = _administrator(request)
    limit = get_object_or_404(Limit, pk=pk)
    words = str(limit)
    actions.remove_limit(limit, by=user)
    messages.success(request, f"The limit {words} is gone.")
    return redirect("limits")


def _edited(request: HttpRequest, form: NumbersForm, limit: Limit | None) -> HttpResponse:
    subject = called(subject_of(limit)) if limit else ""
    context = {
        "page": "all-limits",
        "form": form,
        "limit": limit,
        "subject": subject,
        "numbers": [form[name] for name in actions.NUMBERS],
    }
    return render(request, "limits/edit.html", context, status=422 if form.errors else 200)


def _numbers(limit: Limit) -> list[tuple[int, str]]:
    """Those that are set, each with its words."""
    numbers = ((getattr(limit, name), use.WORDS[name]) for name in actions.NUMBERS)
    return [(number, words) for number, words in numbers if number is not None]


def _administrator(request: HttpRequest) -> User:
    user = person(request)
    if not user.is_staff:
        raise NotAllowed("Administrators set limits.")
    return user
