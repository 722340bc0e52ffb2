"""A person's settings: profile, sessions, security."""

import re

from allauth.usersessions.internal.flows import sessions as session_flows
from allauth.usersessions.models import UserSession
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts import audit
from accounts.access import person
from accounts.people import actions as people_actions
from accounts.settings.forms import ProfileForm
from accounts.tokens import tokens

_BROWSERS = ("Firefox", "Edg", "OPR", "Chrome", "Safari", "curl")
_NAMES = {"Edg": "Edge", "OPR": "Opera"}
_SYSTEMS = ("Android", "iPhone", "iPad", "Windows", "Mac OS", "Linux")


@require_http_methods(["GET", "POST"])
@login_required
def profile(request: HttpRequest) -> HttpResponse:
    """Who one is here."""
    user = person(request)
    form = ProfileForm(request.POST or None, instance=user)
    if form.is_valid():
        people_actions.change(user, by=user, **form.cleaned_data)
        messages.success(request, "Saved.")
        return redirect("settings")
    status = 422 if form.errors else 200
    return render(request, "settings/profile.html", {"page": "profile", "form": form}, status=status)


@require_safe
@login_required
def sessions(request: HttpRequest) -> HttpResponse:
    """Where one is signed in."""
    user = person(request)
    # Also a session that is older than their list.
    UserSession.objects.create_from_request(request)
    found = sorted(UserSession.objects.purge_and_list(user), key=lambda one: one.last_seen_at, reverse=True)
    shown = [(one, browser(one.user_agent), one.is_current()) for one in found]
    context = {"page": "sessions", "sessions": shown, "programs": tokens.living(user).count()}
    return render(request, "settings/sessions.html", context)


@require_POST
@login_required
def end_session(request: HttpRequest, pk: int) -> HttpResponse:
    """Sign out one browser."""
    user = person(request)
    session = get_object_or_404(UserSession, pk=pk, user=user)
    audit.record(user, "session.end", user, browser=browser(session.user_agent))
    session_flows.end_sessions(request, [session])
    messages.success(request, "That browser is signed out.")
    return redirect("settings-sessions")


@require_POST
@login_required
def end_others(request: HttpRequest) -> HttpResponse:
    """Sign out every other browser, and every program with tokens."""
    user = person(request)
    audit.record(user, "session.end_others", user)
    session_flows.end_other_sessions(request, user)
    tokens.revoke_all(user)
    messages.success(request, "Everything but this browser is signed out.")
    return redirect("settings-sessions")


@require_safe
@login_required
def security(request: HttpRequest) -> HttpResponse:
    """The password, and the second factor."""
    return render(request, "settings/security.html", {"page": "security"})


def browser(user_agent: str) -> str:
    """A browser in words: `Firefox on Linux`."""
    name = next((one for one in _BROWSERS if f"{one}/" in user_agent), "")
    system = next((one for one in _SYSTEMS if one in user_agent), "")
    words = " on ".join(part for part in (_NAMES.get(name, name), system.replace("Mac OS", "macOS")) if part)
    return words or re.sub(r"[/ ].*", "", user_agent)[:40] or "A browser that doesn't say its name"
