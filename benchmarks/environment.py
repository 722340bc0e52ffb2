"""The environment of a benchmark, set when this module is imported: before anything reads Django's settings."""

import os
import socket
import tempfile
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


DATA_DIR = Path(tempfile.mkdtemp(prefix="llamaproj-bench-"))
PORT = free_port()

# An empty value is a value: a developer's `.env` file can't fill it.
os.environ |= {
    "ALLOWED_HOSTS": "",
    "ASGI_SERVER": "",
    "DATABASE_URL": "",
    "DATA_DIR": str(DATA_DIR),
    "DEBUG": "",
    "DJANGO_SETTINGS_MODULE": "llamaproj.settings",
    "HOST": "",
    "LOG_FORMAT": "console",
    "LOG_LEVEL": "warning",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "",
    "PORT": str(PORT),
    "REDIS_URL": "",
    "SECRET_KEY": "only-for-benchmarks-only-for-benchmarks-only-for-benchmarks",
    "SECURE": "",
}
