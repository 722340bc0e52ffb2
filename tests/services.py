"""A pytest plugin (`-p tests.services`): the environment of the tests, and real services for them.

PostgreSQL and Valkey are the embedded ones, in a data folder that lives as long as the run. The environment is set
when this module is imported, before anything reads Django's settings.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

DATA_DIR = Path(tempfile.mkdtemp(prefix="llamaproj-tests-"))

# An empty value is a value: a developer's `.env` file can't fill it.
os.environ |= {
    "ADMIN_PASSWORD": "",
    "ADMIN_USERNAME": "",
    "ALLOWED_HOSTS": "",
    "ASGI_SERVER": "",
    "CSRF_TRUSTED_ORIGINS": "",
    "DATABASE_URL": "",
    "DATA_DIR": str(DATA_DIR),
    "DEBUG": "",
    "DEMO_MODEL": "",
    "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody listens: a test that needs a hub brings one
    "HF_TOKEN": "",
    "HOST": "",
    "LLAMA_SERVER_BIN": "",
    "LOG_FORMAT": "console",
    "LOG_LEVEL": "",
    "METRICS_TOKEN": "",
    "MODELS_DIR": "",
    "NODE_ADDRESS": "",
    "NODE_LABELS": "",
    "NODE_NAME": "test-node",
    "NODE_PUBLIC": "",
    "PORT": "",
    "REDIS_URL": "",
    "SECRET_KEY": "only-for-tests-only-for-tests-only-for-tests-only-for-tests",
    "SECURE": "",
}

if sys.dont_write_bytecode:
    # Hundreds of processes begin with the same modules: they are compiled once, and nothing of it stays.
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(DATA_DIR / "bytecode")}

from django.db import connection
from django.test import TransactionTestCase

from llamaproj import env
from llamaproj.up import preflight
from llamaproj.up.postgres import Postgres
from llamaproj.up.program import Program
from llamaproj.up.valkey import Valkey

# What migrations have made and no test changes.
_KEPT_TABLES = frozenset({"django_migrations", "django_content_type", "auth_permission"})
_READY_S = 60
_STOP_S = 20

preflight.make_folders()
postgres = Postgres(
    data=DATA_DIR / "postgres",
    sockets=env.socket_dir(),
    log_file=DATA_DIR / "logs" / "postgres.log",
    durable=False,
)
valkey = Valkey(
    data=DATA_DIR / "valkey",
    socket=env.socket_dir() / "valkey.sock",
    log_file=DATA_DIR / "logs" / "valkey.log",
    durable=False,
)
_running: list[tuple[Program, subprocess.Popen[bytes]]] = []


def pytest_configure() -> None:
    TransactionTestCase._fixture_teardown = _empty_tables


def _empty_tables(_: TransactionTestCase) -> None:
    """After a test that commits. Django truncates all tables and makes its permissions anew; nearly all are empty."""
    found = connection.introspection.django_table_names(only_existing=True, include_views=False)
    tables = sorted(set(found) - _KEPT_TABLES)
    with connection.cursor() as cursor:
        cursor.execute(
            " UNION ALL ".join(f"SELECT '{name}' WHERE EXISTS (SELECT FROM {name})" for name in tables)
        )
        full = [name for (name,) in cursor.fetchall()]
        # Whatever refers to whom: everything goes.
        cursor.execute("SET session_replication_role = replica")
        for name in full:
            cursor.execute(f"DELETE FROM {name}")
        cursor.execute("SET session_replication_role = DEFAULT")


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    for service in (postgres, valkey):
        service.prepare()
        program = service.program()
        log = program.open_log()
        process = subprocess.Popen(program.argv, stdout=log, stderr=log, **program.popen_options())
        os.close(log)
        _running.append((program, process))
    deadline = time.monotonic() + _READY_S
    while not (postgres.is_ready() and valkey.is_ready()):
        if time.monotonic() > deadline:
            pytest.exit(f"The services of the tests don't start; see {DATA_DIR / 'logs'}.", returncode=3)
        time.sleep(0.02)
    postgres.create_database("llamaproj")


def pytest_unconfigure(config: pytest.Config) -> None:
    for program, process in reversed(_running):
        process.send_signal(program.stop_signal)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    _running.clear()
    shutil.rmtree(DATA_DIR, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was not tested is said loudly, with the reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section(f"NOT TESTED: {len(skipped)} skipped", sep="!", red=True, bold=True)
    reasons: dict[str, list[str]] = {}
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    for reason, nodes in reasons.items():
        terminalreporter.line(reason, red=True)
        for node in nodes:
            terminalreporter.line(f"    {node}")
