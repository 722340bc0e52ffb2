"""URLs of nodes."""

from django.urls import path

from models_admin.nodes import views as node_views

urlpatterns = [
    path("", node_views.index, name="nodes"),
    path("<int:pk>/accept/", node_views.accept, name="node-accept"),
    path("<int:pk>/edit/", node_views.edit, name="node-edit"),
    path("<int:pk>/remove/", node_views.remove, name="node-remove"),
]
