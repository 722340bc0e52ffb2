"""URLs of usage, below /api/v1/."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from gateway.usage import api

router = SimpleRouter(use_regex_path=False)
router.register("usage", api.RecordViewSet, basename="api-usage")
router.register("prices", api.PriceViewSet, basename="api-price")

urlpatterns = [
    path("usage/summary/", api.SummaryView.as_view(), name="api-usage-summary"),
    path("usage/config/", api.UsageConfigView.as_view(), name="api-usage-config"),
    *router.urls,
]
