"""The OpenAI-compatible API, below /v1/."""

from django.urls import path

from gateway import api

urlpatterns = [
    path("models", api.models),
    path("models/<slug:slug>", api.model),
    path("chat/completions", api.chat_completions),
    path("<path:rest>", api.unknown),
]
