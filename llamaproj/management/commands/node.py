"""`llamaproj node`, for the list of commands: `llamaproj.cli` runs it before Django is loaded."""

import sys
from typing import Any

from django.core.management import BaseCommand

from llamaproj.up import node


class Command(BaseCommand):
    """Works for a portal elsewhere until Ctrl-C or SIGTERM."""

    help = "Run a node worker on this machine for a portal elsewhere; Ctrl-C stops it."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until stopped; the exit status says whether it could start."""
        sys.exit(node.main())
