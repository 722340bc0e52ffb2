"""`apikey create --user U --name N`, `apikey list`, `apikey revoke PREFIX`."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import actions
from accounts.models import ApiKey, User


class Command(BaseCommand):
    help = "Create, list and revoke API keys."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `--help`."""
        commands = parser.add_subparsers(dest="command", required=True)
        create = commands.add_parser("create", help="print a new key, alone on the last line")
        create.add_argument("--user", required=True)
        create.add_argument("--name", required=True)
        commands.add_parser("list", help="list the keys that can be used")
        revoke = commands.add_parser("revoke", help="make a key worthless")
        revoke.add_argument("prefix", help="the beginning of the key, as `list` shows it")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it. Raises `CommandError` in words."""
        match options["command"]:
            case "create":
                self._create(options["user"], options["name"])
            case "list":
                for key in ApiKey.objects.usable().select_related("user"):
                    self.stdout.write(f"{key.prefix}…  {key.user.username:20}  {key.name}")
            case "revoke":
                self._revoke(options["prefix"])

    def _create(self, username: str, name: str) -> None:
        user = User.objects.filter(username=username).first()
        if user is None:
            raise CommandError(f"There is no user {username!r}.")
        _, key = actions.create_api_key(user=user, name=name, by=None)
        self.stdout.write("Keep this key now; it can't be shown again:")
        self.stdout.write(key)

    def _revoke(self, prefix: str) -> None:
        found = list(ApiKey.objects.usable().filter(prefix=prefix.rstrip("…")[:10]))
        if len(found) != 1:
            raise CommandError(f"{len(found)} usable keys begin with {prefix!r}; exactly one must.")
        actions.revoke_api_key(found[0], by=None)
        self.stdout.write(f"{found[0]} is revoked.")
