"""The app, as Django knows it."""

from django.apps import AppConfig


class GatewayConfig(AppConfig):
    name = "gateway"
