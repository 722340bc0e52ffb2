"""URLs of a person's settings."""

from django.urls import path

from accounts.settings import key_views, views

urlpatterns = [
    path("", views.profile, name="settings"),
    path("keys/", key_views.index, name="settings-keys"),
    path("keys/new/", key_views.new, name="settings-key-new"),
    path("keys/<uuid:pk>/rename/", key_views.rename, name="settings-key-rename"),
    path("keys/<uuid:pk>/revoke/", key_views.revoke, name="settings-key-revoke"),
    path("sessions/", views.sessions, name="settings-sessions"),
    path("sessions/others/", views.end_others, name="settings-sessions-others"),
    path("sessions/<int:pk>/end/", views.end_session, name="settings-session-end"),
    path("security/", views.security, name="settings-security"),
]
