"""Every URL of the portal."""

from django.contrib import admin
from django.urls import include, path

from accounts.views import by_an_administrator
from llamaproj import health

handler404 = "llamaproj.api.not_found"
handler500 = "llamaproj.api.server_error"

urlpatterns = [
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("admin/", admin.site.urls),
    path("accounts/password/reset/", by_an_administrator),
    path("accounts/email/", by_an_administrator),
    path("accounts/", include("allauth.account.urls")),
    path("accounts/2fa/", include("allauth.mfa.urls")),
    path("accounts/sso/", include("allauth.socialaccount.urls")),
    path("accounts/", include("allauth.socialaccount.providers.openid_connect.urls")),
    path("api/", include("llamaproj.api_urls")),
    path("settings/", include("accounts.settings.urls")),
    path("settings/limits/", include("gateway.limits.urls")),
    path("models/", include("models_admin.urls")),
    path("usage/", include("gateway.usage.urls")),
    path("", include("accounts.teams.urls")),
    path("", include("accounts.trail.urls")),
    path("", include("monitoring.urls")),
    path("prompts/", include("chat.prompts.urls")),
    path("", include("chat.urls")),
]
