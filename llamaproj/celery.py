"""Background work: the Celery application and its clock."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "llamaproj.settings")

app = Celery("llamaproj")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.autodiscover_tasks(["models_admin.hub", "models_admin.external", "gateway.usage"])
