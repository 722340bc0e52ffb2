"""Fails when a model differs from its migrations: `makemigrations --check`, without asking a database."""

import os
import sys

import django
from django.apps import apps
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState


def main() -> int:
    """Print what is missing; 0 when nothing is."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "llamaproj.settings")
    django.setup()
    loader = MigrationLoader(None)
    detector = MigrationAutodetector(loader.project_state(), ProjectState.from_apps(apps))
    missing = detector.changes(graph=loader.graph)
    for app, migrations in missing.items():
        for migration in migrations:
            for operation in migration.operations:
                print(f"{app}: no migration for: {operation.describe()}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
