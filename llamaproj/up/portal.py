"""What `up` does inside Django, before the processes start and after they have stopped."""

from dataclasses import dataclass

import django
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections
from django.db.migrations.executor import MigrationExecutor
from redis import RedisError

from llamaproj import env
from llamaproj.errors import LlamaProjError
from llamaproj.up import demo
from llamaproj.up.errors import StartError

# Any number that nothing else locks: two portals on one database must not migrate at once.
_MIGRATION_LOCK = 0x6C6C616D61


@dataclass(frozen=True)
class Prepared:
    """What preparing the database came to."""

    migrations: int
    admin_password: str | None
    wants_models: bool


def prepare() -> Prepared:
    """Migrate, install the demo model, make the first administrator. Leaves no connection open. Raises `StartError`."""
    from accounts.actions import ensure_first_admin
    from models_admin.models import ServedModel

    try:
        migrations = _migrate()
        if env.DEMO_MODEL and demo.install_file(env.MODELS_DIRS[0]):
            call_command("models", "install-demo", verbosity=0)
        wants_models = ServedModel.objects.filter(desired_replicas__gt=0).exists()
        # Last, because a password that was generated is shown only once and nothing may fail before that.
        password = ensure_first_admin(env.ADMIN_USERNAME, env.ADMIN_PASSWORD)
        return Prepared(migrations=migrations, admin_password=password, wants_models=wants_models)
    except (CommandError, DatabaseError, LlamaProjError, OSError) as error:
        raise StartError(f"The database or the models can't be made ready: {error}") from error
    finally:
        _disconnect()


def stop_models() -> str:
    """Stop this node's llama-servers and keep what is wanted, so that the next start brings them back.

    Returns a sentence where it failed.
    """
    try:
        call_command("models", "stop-all", node=env.NODE_NAME, verbosity=0)
    except (CommandError, DatabaseError, LlamaProjError, OSError, RedisError) as error:
        return f"The models of this machine could not be stopped: {str(error).splitlines()[0]}"
    finally:
        _disconnect()
    return ""


def load() -> None:
    """Load Django's settings and apps."""
    django.setup()


def _migrate() -> int:
    """Apply pending migrations. Returns how many there were."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [_MIGRATION_LOCK])
        try:
            executor = MigrationExecutor(connection)
            plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
            if plan:
                call_command("migrate", interactive=False, verbosity=0)
            return len(plan)
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_MIGRATION_LOCK])


def _disconnect() -> None:
    connections.close_all()
    # Django's PostgreSQL backend keeps a pool per process; its threads would outlive the server.
    connection.close_pool()  # type: ignore[attr-defined]  # not in the stubs
