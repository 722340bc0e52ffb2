"""URLs of accounts, below /api/v1/."""

from rest_framework.routers import SimpleRouter

from accounts import key_api

router = SimpleRouter(use_regex_path=False)
router.register("keys", key_api.KeyViewSet, basename="api-key")

urlpatterns = [*router.urls]
