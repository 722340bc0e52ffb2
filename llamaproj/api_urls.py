"""The REST API of all apps, its schema and its explorer, below /api/."""

from django.contrib.auth.decorators import login_required
from django.urls import include, path
from drf_spectacular.views import SpectacularJSONAPIView

from llamaproj import api

urlpatterns = [
    path("schema/", SpectacularJSONAPIView.as_view(), name="api-schema"),
    path("docs/", login_required(api.Explorer.as_view()), name="api-docs"),
    path("v1/health/", api.HealthView.as_view(), name="api-health"),
    path("v1/", include("accounts.api_urls")),
    path("v1/", include("accounts.people.api_urls")),
    path("v1/", include("models_admin.api_urls")),
    path("v1/", include("gateway.limits.api_urls")),
    path("v1/", include("gateway.usage.api_urls")),
    path("v1/", include("chat.api_urls")),
    path("v1/", include("monitoring.api_urls")),
]
