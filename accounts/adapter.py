"""How allauth behaves here."""

from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from django.http import HttpRequest

from accounts import audit
from accounts.models import User


class ClosedSignUp(DefaultAccountAdapter):
    """Accounts are made by an administrator; nobody signs up alone."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Always no."""
        return False

    def send_notification_mail(self, template_prefix: str, user: User, *args: Any, **kwargs: Any) -> None:
        """The portal sends no mail: the audit trail hears that, say, somebody changed the password."""
        audit.record(user, f"account.{template_prefix.rpartition('/')[2]}", user)
