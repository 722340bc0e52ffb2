"""URLs of accounts, below /api/v1/."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from accounts import key_api
from accounts.teams.api import InvitationViewSet, TeamViewSet
from accounts.tokens import api as token_api
from accounts.trail.api import EntryViewSet

router = SimpleRouter(use_regex_path=False)
router.register("keys", key_api.KeyViewSet, basename="api-key")
router.register("teams", TeamViewSet, basename="api-team")
router.register("invitations", InvitationViewSet, basename="api-invitation")
router.register("audit", EntryViewSet, basename="api-audit")

urlpatterns = [
    path("auth/token/", token_api.SignInView.as_view(), name="api-token"),
    path("auth/token/refresh/", token_api.RefreshView.as_view(), name="api-token-refresh"),
    path("auth/token/revoke/", token_api.RevokeView.as_view(), name="api-token-revoke"),
    *router.urls,
]
