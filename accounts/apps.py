"""The app, as Django knows it."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"
    # "Accounts" is what the sign-in library calls its own.
    verbose_name = "People"
