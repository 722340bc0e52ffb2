"""What `up` does inside Django, before the processes start and after they have stopped."""

from dataclasses import dataclass

import django
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections
from django.db.migrations.executor import MigrationExecutor
from redis import RedisError

from llamaproj import env
from llamaproj.errors import LlamaProjError
from llamaproj.up import demo, leftovers
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
    from models_admin.nodes import facts as node_facts

    try:
        migrations = _migrate()
        node_facts.check_name()
        if env.DEMO_MODEL and demo.install_file(env.MODELS_DIRS[0]):
            call_command("models", "install-demo", verbosity=0)
        wants_models = ServedModel.objects.filter(desired_replicas__gt=0).exists()
        _note_key()
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
    from models_admin.nodes import facts as node_facts

    try:
        call_command("models", "stop-all", node=env.NODE_NAME, verbosity=0)
        node_facts.leave()
    except (CommandError, DatabaseError, LlamaProjError, OSError, RedisError) as error:
        return f"The models of this machine could not be stopped: {str(error).splitlines()[0]}"
    finally:
        _disconnect()
    return ""


def end_models() -> None:
    """End this machine's llama-servers without asking the database."""
    from models_admin.engine import process

    leftovers.end(process.with_mark(process.mark_of_all()))


def check_joining() -> None:
    """Refuse a node that doesn't fit the portal on this database. Raises `StartError`."""
    from models_admin import secret_box
    from models_admin.models import PortalConfig
    from models_admin.nodes import facts as node_facts

    try:
        _check_schema()
        fingerprint = PortalConfig.current().key_fingerprint
        if fingerprint != secret_box.fingerprint():
            raise StartError(
                "SECRET_KEY differs from the portal's: a node needs the same (the portal's is in its environment or in"
                " the file secret_key of its DATA_DIR)."
                if fingerprint
                else "No portal has been started on this database since it was upgraded; start the portal first."
            )
        node_facts.check_name()
    except (DatabaseError, LlamaProjError) as error:
        raise StartError(f"This node can't join: {error}") from error
    finally:
        _disconnect()


def has_joined() -> bool:
    """True once this node's worker has announced itself."""
    from models_admin.models import Node
    from models_admin.nodes import facts as node_facts

    try:
        return Node.objects.alive().filter(name=env.NODE_NAME).exists() and node_facts.is_ours(env.NODE_NAME)
    except DatabaseError:
        return False
    finally:
        _disconnect()


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


def _check_schema() -> None:
    """Refuse a database that was made ready by another version."""
    loader = MigrationExecutor(connection).loader
    applied = {key for key in loader.applied_migrations if key[0] in loader.migrated_apps}
    if not applied:
        raise StartError("No portal has been started on this database; start the portal first.")
    if applied - loader.disk_migrations.keys():
        raise StartError(
            "The portal is newer than this node: install the portal's version of llamaproj here."
        )
    if loader.graph.nodes.keys() - applied:
        raise StartError("The portal is older than this node: upgrade the portal first, then start the node.")


def _note_key() -> None:
    """Note which SECRET_KEY the portal has, for the nodes that want to join."""
    from models_admin import secret_box
    from models_admin.models import PortalConfig

    fingerprint = secret_box.fingerprint()
    if PortalConfig.current().key_fingerprint != fingerprint:
        PortalConfig.objects.update_or_create(pk=1, defaults={"key_fingerprint": fingerprint})


def _disconnect() -> None:
    connections.close_all()
    # Django's PostgreSQL backend keeps a pool per process; its threads would outlive the server.
    connection.close_pool()  # type: ignore[attr-defined]  # not in the stubs
