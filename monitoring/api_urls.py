"""URLs of what was measured, below /api/v1/."""

from django.urls import path

from monitoring import api

urlpatterns = [
    path("metrics/", api.MetricsView.as_view(), name="api-metrics"),
    path("statistics/", api.StatisticsView.as_view(), name="api-statistics"),
    path("instances/<uuid:pk>/metrics/", api.InstanceMetricsView.as_view(), name="api-instance-metrics"),
]
