"""URLs of monitoring."""

from django.urls import path

from monitoring import views

urlpatterns = [
    path("dashboard/", views.dashboard, name="dashboard"),
    path("monitoring/", views.monitoring, name="monitoring"),
    path("monitoring/history/", views.history, name="monitoring_history"),
    path("monitoring/statistics/", views.api_statistics, name="monitoring_statistics"),
    path("metrics", views.prometheus, name="metrics"),
]
