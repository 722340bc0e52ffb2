"""URLs of people, below /api/v1/."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from accounts.people import api

router = SimpleRouter(use_regex_path=False)
router.register("users", api.PersonViewSet, basename="api-user")

urlpatterns = [path("me/", api.MeView.as_view(), name="api-me"), *router.urls]
