"""URLs of usage."""

from django.urls import path

from gateway.usage import views

ALL = {"everybody": True}

urlpatterns = [
    path("", views.page, name="usage"),
    path("sums.csv", views.download, {"what": "sums"}, name="usage-sums"),
    path("requests.csv", views.download, {"what": "requests"}, name="usage-requests"),
    path("all/", views.page, ALL, name="usage-all"),
    path("all/sums.csv", views.download, {"what": "sums", **ALL}, name="usage-all-sums"),
    path("all/requests.csv", views.download, {"what": "requests", **ALL}, name="usage-all-requests"),
    path("teams/<int:pk>/", views.page, name="usage-team"),
    path("teams/<int:pk>/sums.csv", views.download, {"what": "sums"}, name="usage-team-sums"),
    path("teams/<int:pk>/requests.csv", views.download, {"what": "requests"}, name="usage-team-requests"),
    path("settings/", views.settings, name="usage-settings"),
]
