"""The chat's pages."""

from django.urls import path

from chat import views

urlpatterns = [
    path("", views.index, name="index"),
    path("c/", views.conversations, name="conversations"),
    path("c/shared/", views.shared, name="conversations-shared"),
    path("c/new/", views.new, name="conversation-new"),
    path("c/<uuid:pk>/", views.conversation, name="conversation"),
    path("c/<uuid:pk>/send/", views.send, name="conversation-send"),
    path("c/<uuid:pk>/stop/", views.stop, name="conversation-stop"),
    path("c/<uuid:pk>/rename/", views.rename, name="conversation-rename"),
    path("c/<uuid:pk>/share/", views.share, name="conversation-share"),
    path("c/<uuid:pk>/delete/", views.delete, name="conversation-delete"),
    path("c/<uuid:pk>/retry/<uuid:message>/", views.retry, name="conversation-retry"),
]
