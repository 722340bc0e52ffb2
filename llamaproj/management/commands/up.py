"""`manage.py up`: the whole portal on this machine."""

import sys
from typing import Any

from django.core.management import BaseCommand

from llamaproj.up import launcher


class Command(BaseCommand):
    """Runs the portal until Ctrl-C or SIGTERM."""

    help = "Start the whole portal on this machine; Ctrl-C stops it."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until stopped; the exit status says whether it could start."""
        sys.exit(launcher.main())
