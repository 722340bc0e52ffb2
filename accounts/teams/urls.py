"""The teams' pages, and the page behind an invitation."""

from django.urls import path

from accounts.teams import join, views

urlpatterns = [
    path("teams/", views.teams, name="teams"),
    path("teams/invite/", views.invite, name="portal-invite"),
    path("teams/<int:pk>/", views.team, name="team"),
    path("teams/<int:pk>/edit/", views.edit, name="team-edit"),
    path("teams/<int:pk>/delete/", views.delete, name="team-delete"),
    path("teams/<int:pk>/invite/", views.invite, name="team-invite"),
    path("teams/<int:pk>/members/", views.add, name="team-add"),
    path("teams/<int:pk>/members/<int:member>/role/", views.set_role, name="team-role"),
    path("teams/<int:pk>/members/<int:member>/remove/", views.remove, name="team-remove"),
    path("invitations/<uuid:invitation>/revoke/", views.revoke, name="invitation-revoke"),
    path("join/", join.join, name="join-signed-in"),
    path("join/<str:token>/", join.join, name="join"),
]
