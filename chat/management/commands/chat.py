"""`chat SLUG "text"`: stream an answer to the terminal."""

import asyncio
import sys
from argparse import ArgumentParser
from typing import Any

import orjson
from django.core.management.base import BaseCommand, CommandError

from accounts.models import User
from gateway import admission, completion
from gateway.models import UsageRecord
from gateway.upstream import close_session
from llamaproj.errors import LlamaProjError
from models_admin.models import ServedModel

_INTERRUPTED = 130  # what a shell says of a program ended by Ctrl-C


class Command(BaseCommand):
    help = "Ask a model something and print its answer as it comes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `--help`."""
        parser.add_argument("slug", help="the model, as `models list` shows it")
        parser.add_argument("text")
        parser.add_argument("--max-tokens", type=int, help="end the answer after so many tokens")
        parser.add_argument("--user", help="who is asking; the first administrator if not given")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it. Raises `CommandError` in words."""
        users = User.objects.filter(is_active=True)
        named = options["user"]
        user = users.filter(username=named).first() if named else users.filter(is_superuser=True).first()
        if user is None:
            raise CommandError(f"There is no user {named!r}." if named else "There is no administrator yet.")
        served = ServedModel.objects.visible_to(user).filter(slug=options["slug"]).first()
        if served is None:
            raise CommandError(f"There is no model {options['slug']!r}; see `models list`.")
        try:
            asyncio.run(self._stream(user, served, options["text"], options["max_tokens"]))
        except LlamaProjError as error:
            raise CommandError(error.message) from error
        except KeyboardInterrupt:
            self.stdout.write("")
            sys.exit(_INTERRUPTED)

    async def _stream(self, user: User, served: ServedModel, text: str, max_tokens: int | None) -> None:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "stream": True}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        try:
            caller = await admission.caller_of_user(user.pk)
            call = completion.Call(caller, served.slug, door=UsageRecord.Door.CHAT, body=body)
            async with completion.run(call) as stream:
                async for payload in stream.payloads():
                    for choice in orjson.loads(payload)["choices"]:
                        self.stdout.write(choice["delta"].get("content") or "", ending="")
                        self.stdout.flush()
        finally:
            await admission.stop()
            await close_session()
        self.stdout.write("")
