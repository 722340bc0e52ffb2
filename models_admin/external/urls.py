"""URLs of external servers, below /models/external/."""

from django.urls import path

from models_admin.external import views

urlpatterns = [
    path("", views.index, name="external"),
    path("present/", views.present, name="external-present"),
    path("add/", views.add, name="external-add"),
    path("<int:pk>/edit/", views.edit, name="external-edit"),
    path("<int:pk>/check/", views.check, name="external-check"),
    path("<int:pk>/enable/", views.enable, name="external-enable"),
    path("<int:pk>/disable/", views.disable, name="external-disable"),
    path("<int:pk>/remove/", views.remove, name="external-remove"),
    path("<int:pk>/serve/", views.serve, name="external-serve"),
]
