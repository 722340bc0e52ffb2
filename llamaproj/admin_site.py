"""The admin site: unfold's, behind the portal's own sign-in, with the content policy it needs."""

from collections.abc import Callable
from typing import Any

from csp.constants import UNSAFE_EVAL, UNSAFE_INLINE
from csp.decorators import csp_update
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.http import urlencode
from unfold.sites import UnfoldAdminSite

# Unfold's pages evaluate Alpine expressions and carry styles inline; no page of the portal itself does.
_POLICY = {"script-src": [UNSAFE_EVAL, UNSAFE_INLINE], "style-src": [UNSAFE_INLINE]}


class PortalAdminSite(UnfoldAdminSite):
    """Staff only; whoever isn't signed in goes to the portal's sign-in."""

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Callable[..., Any]:
        """Every admin view, with the wider policy."""
        wrapped: Callable[..., Any] = csp_update(_POLICY)(super().admin_view(view, cacheable))
        return wrapped

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The portal's sign-in instead of one of its own. Raises `PermissionDenied` for members."""
        if request.user.is_authenticated:
            raise PermissionDenied
        after = {"next": request.GET.get("next", reverse("admin:index"))}
        return redirect(f"{reverse('account_login')}?{urlencode(after)}")
