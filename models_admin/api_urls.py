"""URLs of models, below /api/v1/."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from models_admin import api

router = SimpleRouter(use_regex_path=False)
router.register("models", api.ServedModelViewSet, basename="api-model")
router.register("model-files", api.ModelFileViewSet, basename="api-model-file")
router.register("instances", api.InstanceViewSet, basename="api-instance")
router.register("nodes", api.NodeViewSet, basename="api-node")

urlpatterns = [path("config/", api.ConfigView.as_view(), name="api-config"), *router.urls]
