"""`manage.py prepare`: what a deployment does once before its processes start, and again after each upgrade."""

import os
from typing import Any

from django.core.management import BaseCommand, CommandError

from llamaproj import env
from llamaproj.up import portal, preflight
from llamaproj.up.errors import StartError


class Command(BaseCommand):
    """Makes the database ready for the processes."""

    help = "Migrate, install the demo model (unless DEMO_MODEL=0) and create the first administrator."

    def handle(self, *args: Any, **options: Any) -> None:
        """Safe to run again, and by several machines at once."""
        try:
            preflight.make_folders()
            prepared = portal.prepare()
        except StartError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{prepared.migrations} migrations applied.")
        if prepared.admin_password:
            self.stdout.write(
                f"First administrator: {env.ADMIN_USERNAME}, password {prepared.admin_password}"
                f"{os.linesep}(shown this once: keep it)."
            )
