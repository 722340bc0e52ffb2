"""Pages of accounts that allauth has and this portal hasn't."""

from django.http import HttpRequest, HttpResponse

from llamaproj.errors import NotFound


def by_an_administrator(request: HttpRequest) -> HttpResponse:
    """Passwords are reset and addresses changed by an administrator: the portal sends no mail. Raises `NotFound`."""
    raise NotFound(
        "The portal sends no mail. Ask an administrator for a new password or to change your address."
    )
