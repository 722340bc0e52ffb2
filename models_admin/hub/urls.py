"""URLs of downloads, below `/models/downloads/`."""

from django.urls import path

from models_admin.hub import views as download_views

urlpatterns = [
    path("", download_views.index, name="downloads"),
    path("ask/", download_views.ask, name="download-ask"),
    path("<uuid:pk>/cancel/", download_views.cancel, name="download-cancel"),
    path("<uuid:pk>/retry/", download_views.retry, name="download-retry"),
]
