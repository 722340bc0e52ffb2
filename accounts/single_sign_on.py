"""Signing in through an OpenID Connect server: who may come in, and as whom.

allauth speaks the protocol. The server's word for an e-mail address opens an account only where an administrator
vouched for the same address, and never an administrator's account: its owner connects that one, signed in.
"""

from typing import Any

import requests
import structlog
from allauth.account.models import EmailAddress
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialLogin
from django.db import transaction
from django.http import HttpRequest
from django.urls import reverse

from accounts import audit
from accounts.models import Team, User
from accounts.teams import actions, invitations
from accounts.teams.join import SESSION_KEY
from llamaproj import env
from llamaproj.errors import Conflict, LlamaProjError, Unavailable

log = structlog.get_logger(__name__)


def vouch_for_address(user: User) -> None:
    """An administrator says that the address is the person's; whatever was proved of another one no longer holds."""
    EmailAddress.objects.filter(user=user).exclude(email__iexact=user.email).delete()
    if user.email and not EmailAddress.objects.filter(user=user).update(verified=True, primary=True):
        EmailAddress.objects.create(user=user, email=user.email, verified=True, primary=True)


class AccountExists(Conflict):
    """This address has an account. Sign in to it with its password, then connect it on the page “Single sign-on”."""

    code = "account_exists"


class ServerAway(Unavailable):
    """The server for single sign-on doesn't answer as it should. Try again in a moment, or use your password."""

    code = "sign_on_unavailable"


class SingleSignOn(DefaultSocialAccountAdapter):
    """How allauth's social accounts behave here."""

    def is_open_for_signup(self, request: HttpRequest, sociallogin: SocialLogin) -> bool:
        """Where OIDC_SIGNUP says so, and for whoever came with an invitation."""
        return env.OIDC_SIGNUP == "open" or _may_accept(request, sociallogin)

    def authenticate_by_email(self, login: SocialLogin) -> tuple[User, str] | None:
        """The account whose verified address the server has verified, too; never an administrator's."""
        proved = [one.email for one in login.email_addresses if one.verified is True]
        rows = EmailAddress.objects.filter(verified=True, user__is_active=True, user__is_staff=False)
        for email in proved:
            found = list(rows.filter(email__iexact=email).select_related("user")[:2])
            if len(found) == 1 and found[0].user.email.lower() == email.lower():
                return found[0].user, found[0].email
        return None

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """An address that an account has isn't given to a second one. Raises `AccountExists`."""
        if sociallogin.is_existing or sociallogin.state.get("process") == "connect":
            return
        for address in sociallogin.email_addresses:
            if User.objects.filter(email__iexact=address.email).exists():
                raise AccountExists

    @transaction.atomic
    def save_user(self, request: HttpRequest, sociallogin: SocialLogin, form: Any = None) -> User:
        """A new account: in by the invitation, or in the team of OIDC_TEAM."""
        user: User = super().save_user(request, sociallogin, form)
        audit.record(user, "user.join", user, single_sign_on=env.OIDC_NAME)
        if _may_accept(request, sociallogin):
            invitation = invitations.join(request.session.pop(SESSION_KEY), user)
            if invitation.team is not None:
                sociallogin.state["next"] = reverse("team", args=[invitation.team.pk])
        if env.OIDC_TEAM and env.OIDC_SIGNUP == "open":
            team, is_new = Team.objects.get_or_create(name=env.OIDC_TEAM)
            if is_new:
                audit.record(None, "team.create", team, team=team)
            actions.add(team, user, role="member", by=None)
        return user

    def get_requests_session(self) -> requests.Session:
        """How the server is asked: what can't be read or doesn't come is said in words, as `ServerAway`."""
        session: requests.Session = super().get_requests_session()
        ask = session.request

        def request(method: str, url: str, **options: Any) -> requests.Response:
            try:
                answer = ask(method, url, **options)
                if method == "GET":
                    answer.raise_for_status()
                    answer.json()
            except requests.RequestException as error:
                log.warning("sign_on_server_away", url=url, error=str(error))
                raise ServerAway from error
            return answer

        session.request = request  # type: ignore[method-assign,assignment]  # as allauth sets its timeout
        return session

    def send_notification_mail(self, template_prefix: str, user: User, *args: Any, **kwargs: Any) -> None:
        """The portal sends no mail: the audit trail hears of it."""
        audit.record(user, f"sso.{template_prefix.rpartition('/')[2]}", user)


def _may_accept(request: HttpRequest, sociallogin: SocialLogin) -> bool:
    """Whether the person came with an open invitation that isn't for another address."""
    try:
        invitation = invitations.find(request.session.get(SESSION_KEY, ""))
    except LlamaProjError:
        return False
    proved = {one.email.lower() for one in sociallogin.email_addresses if one.verified is True}
    return not invitation.email or invitation.email.lower() in proved
