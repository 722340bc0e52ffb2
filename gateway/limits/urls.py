"""URLs of limits, among the settings."""

from django.urls import path

from gateway.limits import views

urlpatterns = [
    path("", views.own, name="limits-own"),
    path("now/", views.own_now, name="limits-own-now"),
    path("all/", views.index, name="limits"),
    path("all/add/", views.add, name="limit-add"),
    path("all/<int:pk>/", views.edit, name="limit-edit"),
    path("all/<int:pk>/remove/", views.remove, name="limit-remove"),
]
