"""The portal: settings, URLs, processes. Wires the apps; imported by none of them but for `env` and `errors`."""

from llamaproj.celery import app as celery_app

__all__ = ["celery_app"]
