"""The audit trail's pages."""

from django.urls import path

from accounts.trail import views

urlpatterns = [
    path("audit/", views.trail, name="audit"),
    path("audit/export/", views.export, name="audit-export"),
]
