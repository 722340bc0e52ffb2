"""URLs of models."""

from django.urls import include, path

from models_admin import instance_views, views

urlpatterns = [
    path("", views.index, name="models"),
    path("config/", views.config, name="models-config"),
    path("downloads/", include("models_admin.hub.urls")),
    path("external/", include("models_admin.external.urls")),
    path("nodes/", include("models_admin.nodes.urls")),
    path("scan/", views.scan, name="models-scan"),
    path("add/<int:pk>/", views.add, name="model-add"),
    path("<slug:slug>/", views.detail, name="model"),
    path("<slug:slug>/start/", views.start, name="model-start"),
    path("<slug:slug>/stop/", views.stop, name="model-stop"),
    path("<slug:slug>/restart/", views.restart, name="model-restart"),
    path("<slug:slug>/edit/", views.edit, name="model-edit"),
    path("<slug:slug>/remove/", views.remove, name="model-remove"),
    path("<slug:slug>/remedy/<slug:code>/", instance_views.remedy, name="model-remedy"),
    path("<slug:slug>/log/<uuid:pk>/", instance_views.log, name="model-log-file"),
]
