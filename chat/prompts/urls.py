"""The prompt library's pages."""

from django.urls import path

from chat.prompts import views

urlpatterns = [
    path("", views.prompts, name="prompts"),
    path("choices/", views.choices, name="prompt-choices"),
    path("new/", views.new, name="prompt-new"),
    path("<int:pk>/edit/", views.edit, name="prompt-edit"),
    path("<int:pk>/delete/", views.delete, name="prompt-delete"),
]
