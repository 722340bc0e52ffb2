"""The portal as an app, and its admin site."""

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class LlamaprojConfig(AppConfig):
    name = "llamaproj"


class PortalAdminConfig(AdminConfig):
    default_site = "llamaproj.admin_site.PortalAdminSite"
