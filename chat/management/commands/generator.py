"""`generator`: the process that writes answers."""

import asyncio
from typing import Any

import uvloop
from django.core.management.base import BaseCommand

from chat import generator


class Command(BaseCommand):
    help = "Write the answers of chats until told to stop."

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until SIGTERM or SIGINT."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(generator.main())
