"""The teams' pages. Whoever isn't in a team isn't told that it exists."""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.access import person
from accounts.models import AuditEntry, Invitation, Membership, Team, User
from accounts.teams import access, actions, invitations
from accounts.teams.forms import InvitationForm, TeamForm
from llamaproj.errors import LlamaProjError, NotFound

_LATEST = 10


@login_required
@require_http_methods(["GET", "POST"])
def teams(request: HttpRequest) -> HttpResponse:
    """One's teams; staff see all of them, and make new ones."""
    by = person(request)
    form = TeamForm(request.POST or None, by=by)
    if request.method == "POST":
        access.demand_staff(by)
        if form.is_valid():
            try:
                made = actions.create(by=by, **form.cleaned_data)
                return redirect("team", made.pk)
            except LlamaProjError as error:
                form.add_error("name", error.message)
    return _show_teams(request, form, status=422 if form.errors else 200)


@login_required
@require_GET
def team(request: HttpRequest, pk: int) -> HttpResponse:
    """A team: who is in it, its models, and for its managers who was invited and what was done."""
    return _show_team(request, _visible(request, pk))


@login_required
@require_http_methods(["GET", "POST"])
def edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Its name and weight; its end."""
    by, found = person(request), _visible(request, pk)
    access.demand_owner(by, found)
    form = TeamForm(request.POST or None, instance=Team.objects.get(pk=pk), by=by)
    if form.is_valid():
        try:
            actions.change(found, by=by, **form.cleaned_data)
            return redirect("team", pk)
        except LlamaProjError as error:
            form.add_error("name", error.message)
    context = {"team": found, "form": form, "is_owner": True}
    return render(request, "teams/edit.html", context, status=422 if form.errors else 200)


@login_required
@require_POST
def delete(request: HttpRequest, pk: int) -> HttpResponse:
    """End it."""
    found = _visible(request, pk)
    name = found.name
    try:
        actions.delete(found, by=person(request))
    except LlamaProjError as error:
        return _show_team(request, found, error=error)
    messages.success(request, f"{name} is no more.")
    return redirect("teams")


@login_required
@require_POST
def add(request: HttpRequest, pk: int) -> HttpResponse:
    """Take somebody in without an invitation: staff."""
    by, found = person(request), _visible(request, pk)
    access.demand_staff(by)
    name = request.POST.get("username", "").strip()
    try:
        user = User.objects.filter(username=name, is_active=True).first()
        if user is None:
            raise NotFound(f"Nobody here is called {name!r}.")
        actions.add(found, user, role=request.POST.get("role", ""), by=by)
    except LlamaProjError as error:
        return _show_team(request, found, error=error)
    return redirect("team", pk)


@login_required
@require_POST
def set_role(request: HttpRequest, pk: int, member: int) -> HttpResponse:
    """Change what somebody may do in the team."""
    found = _visible(request, pk)
    row = get_object_or_404(found.memberships.select_related("user", "team"), pk=member)
    try:
        actions.set_role(row, request.POST.get("role", ""), by=person(request))
    except LlamaProjError as error:
        return _show_team(request, found, error=error)
    return redirect("team", pk)


@login_required
@require_POST
def remove(request: HttpRequest, pk: int, member: int) -> HttpResponse:
    """End a membership, perhaps one's own."""
    by, found = person(request), _visible(request, pk)
    row = get_object_or_404(found.memberships.select_related("user", "team"), pk=member)
    try:
        actions.remove(row, by=by)
    except LlamaProjError as error:
        return _show_team(request, found, error=error)
    if row.user_id == by.pk:
        messages.success(request, f"You left {found}.")
        return redirect("team" if by.is_staff else "teams", *([pk] if by.is_staff else []))
    return redirect("team", pk)


@login_required
@require_POST
def invite(request: HttpRequest, pk: int | None = None) -> HttpResponse:
    """Make a link into a team, or into the portal; it is shown in the answer, once."""
    by = person(request)
    found = _visible(request, pk) if pk is not None else None
    access.demand_manager(by, found) if found else access.demand_staff(by)
    form = InvitationForm(request.POST, by=by, team=found)
    link = ""
    if form.is_valid():
        try:
            _, token = invitations.invite(by=by, team=found, **form.cleaned_data)
            link = request.build_absolute_uri(reverse("join", args=[token]))
        except LlamaProjError as error:
            form.add_error(error.param if error.param in form.fields else None, error.message)
    status = 200 if link else 422
    shown: dict[str, Any] = {"link": link} if link else {"invitation_form": form}
    if found:
        return _show_team(request, found, status=status, **shown)
    return _show_teams(request, TeamForm(by=by), status=status, **shown)


@login_required
@require_POST
def revoke(request: HttpRequest, invitation: UUID) -> HttpResponse:
    """Make a link worthless."""
    by = person(request)
    row = get_object_or_404(Invitation.objects.visible_to(by).select_related("team"), pk=invitation)
    invitations.revoke(row, by=by)
    return redirect("team", row.team_id) if row.team_id else redirect("teams")


def _visible(request: HttpRequest, pk: int) -> Team:
    return get_object_or_404(Team.objects.visible_to(person(request)), pk=pk)


def _show_teams(request: HttpRequest, form: TeamForm, *, status: int, **more: Any) -> HttpResponse:
    by = person(request)
    rows = list(Team.objects.visible_to(by).annotate(model_count=Count("models", distinct=True)))
    counts = dict(
        Membership.objects.filter(team__in=rows)
        .values_list("team")
        .annotate(count=Count("pk"))
        .values_list("team", "count")
    )
    roles = dict(Membership.objects.filter(user=by).values_list("team", "role"))
    shown = [{"team": one, "role": roles.get(one.pk), "members": counts.get(one.pk, 0)} for one in rows]
    context: dict[str, Any] = {"rows": shown, "form": form}
    if by.is_staff:
        context["invitations"] = Invitation.objects.open().filter(team=None).select_related("by")
        context["invitation_form"] = InvitationForm(by=by, team=None)
    return render(request, "teams/teams.html", context | more, status=status)


def _show_team(
    request: HttpRequest, found: Team, *, error: LlamaProjError | None = None, status: int = 200, **more: Any
) -> HttpResponse:
    by = person(request)
    members = list(found.memberships.select_related("user").order_by("user__username"))
    own = next((one for one in members if one.user_id == by.pk), None)
    is_manager, is_owner = access.may_manage(by, found), access.may_own(by, found)
    context: dict[str, Any] = {
        "team": found,
        "members": members,
        "own": own,
        "is_manager": is_manager,
        "is_owner": is_owner,
        "roles": Membership.Role.choices,
        "models": found.models.order_by("name"),
        "error": error,
    }
    if is_manager:
        context["invitations"] = found.invitations.open().select_related("by")
        context["invitation_form"] = InvitationForm(by=by, team=found)
        context["entries"] = AuditEntry.objects.visible_to(by).filter(team=found)[:_LATEST]
    return render(request, "teams/team.html", context | more, status=error.status if error else status)
