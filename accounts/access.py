"""Who is asking."""

from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest

from accounts.models import User
from llamaproj.errors import NotAuthenticated


def person(request: HttpRequest) -> User:
    """The signed-in person. Raises `NotAuthenticated`; behind `login_required` that doesn't happen."""
    if isinstance(request.user, AnonymousUser):
        raise NotAuthenticated
    return request.user
