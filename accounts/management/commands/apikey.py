"""`apikey create --user U --name N`, `apikey list`, `apikey revoke PREFIX`."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from accounts import key_actions
from accounts.key_rights import KeyRights
from accounts.models import ApiKey, Team, User
from llamaproj.errors import LlamaProjError


class Command(BaseCommand):
    help = "Create, list and revoke API keys."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `--help`."""
        commands = parser.add_subparsers(dest="command", required=True)
        create = commands.add_parser("create", help="print a new key, alone on the last line")
        create.add_argument("--user", required=True, help="as whom it acts")
        create.add_argument("--name", required=True)
        create.add_argument("--team", help="use what this team may use, and count against its limits")
        create.add_argument(
            "--scope",
            action="append",
            choices=ApiKey.Scope.values,
            help="what it opens; give it several times for several (inference unless given)",
        )
        create.add_argument(
            "--model", action="append", default=[], help="open this model only; may be repeated"
        )
        create.add_argument("--expires-days", type=int, help="end after so many days")
        create.add_argument("--priority", choices=ApiKey.Priority.values, default=ApiKey.Priority.INTERACTIVE)
        commands.add_parser("list", help="list the keys that can be used")
        revoke = commands.add_parser("revoke", help="make a key worthless")
        revoke.add_argument("prefix", help="the beginning of the key, as `list` shows it")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it. Raises `CommandError` in words."""
        try:
            match options["command"]:
                case "create":
                    self._create(options)
                case "list":
                    for key in ApiKey.objects.usable().select_related("user"):
                        scopes = ",".join(key.scopes)
                        self.stdout.write(f"{key.prefix}…  {key.user.username:20}  {scopes:20}  {key.name}")
                case "revoke":
                    self._revoke(options["prefix"])
        except LlamaProjError as error:
            raise CommandError(error.message) from None

    def _create(self, options: dict[str, Any]) -> None:
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['user']!r}.")
        days = options["expires_days"]
        if days is not None and not 0 < days <= 36_500:
            raise CommandError("A key lasts at least a day and at most a century.")
        rights = KeyRights(
            scopes=tuple(options["scope"] or [ApiKey.Scope.INFERENCE]),
            model_slugs=tuple(options["model"]),
            team=self._team(options["team"]) if options["team"] else None,
            priority=options["priority"],
            expires_at=None if days is None else timezone.now() + timedelta(days=days),
        )
        _, key = key_actions.create_api_key(user=user, name=options["name"], by=None, rights=rights)
        self.stdout.write("Keep this key now; it can't be shown again:")
        self.stdout.write(key)

    def _team(self, name: str) -> Team:
        team = Team.objects.filter(name=name).first()
        if team is None:
            raise CommandError(f"There is no team {name!r}.")
        return team

    def _revoke(self, prefix: str) -> None:
        found = list(ApiKey.objects.usable().filter(prefix=prefix.rstrip("…")[:10]))
        if len(found) != 1:
            raise CommandError(f"{len(found)} usable keys begin with {prefix!r}; exactly one must.")
        key_actions.revoke_api_key(found[0], by=None)
        self.stdout.write(f"{found[0]} is revoked.")
