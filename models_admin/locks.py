"""Locks that a database session holds and PostgreSQL frees when its holder dies."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import OperationalError, connection, transaction


@contextmanager
def alone(what: str, wait_ms: int) -> Iterator[bool]:
    """Hold the lock named `what`. False when another process holds it for longer than `wait_ms`."""
    with connection.cursor() as cursor:
        try:
            with transaction.atomic():
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{wait_ms}ms"])
                cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [what])
        except OperationalError:
            yield False
            return
        try:
            yield True
        finally:
            cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [what])
