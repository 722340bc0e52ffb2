"""URLs of limits, below /api/v1/."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from gateway.limits import api

router = SimpleRouter(use_regex_path=False)
router.register("limits", api.LimitViewSet, basename="api-limit")

urlpatterns = [path("me/limits/", api.OwnLimitsView.as_view(), name="api-own-limits"), *router.urls]
