"""URLs of models, below /api/v1/."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from models_admin import api, api_sources
from models_admin.hub import api as hub_api

router = SimpleRouter(use_regex_path=False)
router.register("models", api.ServedModelViewSet, basename="api-model")
router.register("model-files", api.ModelFileViewSet, basename="api-model-file")
router.register("instances", api.InstanceViewSet, basename="api-instance")
router.register("nodes", api.NodeViewSet, basename="api-node")
router.register("downloads", api_sources.DownloadViewSet, basename="api-download")
router.register("external-servers", api_sources.ExternalServerViewSet, basename="api-external")

urlpatterns = [
    path("config/", api.ConfigView.as_view(), name="api-config"),
    path("hub/search/", hub_api.SearchView.as_view(), name="api-hub-search"),
    path("hub/repository/", hub_api.RepositoryView.as_view(), name="api-hub-repository"),
    *router.urls,
]
