"""The page behind an invitation's link. Looking at it changes nothing; its address doesn't leave it."""

import time

from allauth.account.adapter import get_adapter
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.models import AnonymousUser
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from accounts.access import person
from accounts.models import Invitation
from accounts.teams import invitations
from accounts.teams.forms import SignUpForm
from llamaproj.errors import LlamaProjError, TooManyRequests

# In the session, while somebody who came with a link signs in.
SESSION_KEY = "invitation"
_MOST_TRIES, _WINDOW_S = 30, 60


@sensitive_post_parameters("password1", "password2")
@never_cache
@require_http_methods(["GET", "POST"])
def join(request: HttpRequest, token: str = "") -> HttpResponse:
    """Come in: with the account one is signed in with, with another one, or with a new one.

    Without a token, the one with which the person went to sign in. Raises `InvitationSpent` or `TooManyRequests`.
    """
    _count(request)
    response = _answer(request, token)
    # Nobody learns the address with its token. `no-referrer` would send the form with the origin "null", which the
    # guard against forged requests refuses.
    response["referrer-policy"] = "strict-origin"
    return response


def _count(request: HttpRequest) -> None:
    """Looking counts, too: it tells whether a token is one. Raises `TooManyRequests`."""
    key = f"join:{get_adapter().get_client_ip(request)}:{int(time.time() // _WINDOW_S)}"
    cache.add(key, 0, _WINDOW_S)
    if cache.incr(key) > _MOST_TRIES:
        raise TooManyRequests("Too many tries from this address. Wait a minute.", retry_after=_WINDOW_S)


def _answer(request: HttpRequest, token: str) -> HttpResponse:
    token = token or request.session.get(SESSION_KEY, "")
    invitation = invitations.find(token)
    if request.method == "POST" and "sign-in" in request.POST:
        request.session[SESSION_KEY] = token
        return redirect(f"{reverse('account_login')}?{urlencode({'next': reverse('join-signed-in')})}")
    if isinstance(request.user, AnonymousUser):
        return _new(request, invitation, token)
    if request.method == "POST":
        try:
            invitations.join(token, person(request))
        except LlamaProjError as error:
            return _show(request, invitation, None, error)
        return _joined(request, invitation)
    return _show(request, invitation, None)


def _new(request: HttpRequest, invitation: Invitation, token: str) -> HttpResponse:
    form = SignUpForm(request.POST or None, invitation=invitation)
    if not form.is_valid():
        return _show(request, invitation, form)
    try:
        user = invitations.sign_up(
            token, username=form.cleaned_data["username"], password=form.cleaned_data["password1"]
        )
    except LlamaProjError as error:
        form.add_error(error.param if error.param in form.fields else None, error.message)
        return _show(request, invitation, form)
    login(request, user, backend="accounts.backends.StaffBackend")
    return _joined(request, invitation)


def _joined(request: HttpRequest, invitation: Invitation) -> HttpResponse:
    request.session.pop(SESSION_KEY, None)
    if invitation.team is None:
        return redirect("index")
    messages.success(request, f"Welcome to {invitation.team}.")
    return redirect("team", invitation.team.pk)


def _show(
    request: HttpRequest,
    invitation: Invitation,
    form: SignUpForm | None,
    error: LlamaProjError | None = None,
) -> HttpResponse:
    context = {"invitation": invitation, "form": form, "error": error}
    status = error.status if error else 422 if form is not None and form.errors else 200
    return render(request, "teams/join.html", context, status=status)
