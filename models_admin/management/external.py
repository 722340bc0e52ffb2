"""`models external …`: external servers from the command line."""

import getpass
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError, OutputWrapper

from models_admin.external import actions as external_actions
from models_admin.external import external
from models_admin.models import ExternalServer


def add_arguments(parser: ArgumentParser) -> None:
    """One subcommand a verb."""
    verbs = parser.add_subparsers(dest="external_verb", required=True, metavar="VERB")
    add = verbs.add_parser("add", help="make a server known and ask it")
    add.add_argument("name")
    add.add_argument("address", help="where OpenAI's paths begin, such as http://host:11434/v1")
    # Not as an argument: everybody on the machine can read those.
    add.add_argument("--key-from-stdin", action="store_true", help="read the server's key, one line")
    change = verbs.add_parser("set", help="change its name, its address or its key")
    change.add_argument("name")
    change.add_argument("--name", dest="new_name", help="what it is called from now on")
    change.add_argument("--address", help="where OpenAI's paths begin")
    key = change.add_mutually_exclusive_group()
    key.add_argument("--key-from-stdin", action="store_true", help="read the server's new key, one line")
    key.add_argument("--forget-key", action="store_true", help="send none any more")
    verbs.add_parser("list", help="show servers and what they offer")
    for verb, does in (
        ("check", "ask it now"),
        ("enable", "switch it on"),
        ("disable", "switch it off"),
        ("remove", "forget it"),
    ):
        verbs.add_parser(verb, help=does).add_argument("name")
    serve = verbs.add_parser("serve", help="serve one of its models")
    serve.add_argument("name")
    serve.add_argument("model", help="what the server calls it")
    serve.add_argument("--slug", default="", help="the name for programs")


def run(options: dict[str, Any], out: OutputWrapper) -> None:
    """Do what the options say. Raises `LlamaProjError` or `CommandError`."""
    {
        "add": _add,
        "set": _set,
        "list": _list,
        "check": _check,
        "enable": _enable,
        "disable": _disable,
        "remove": _remove,
        "serve": _serve,
    }[options["external_verb"]](options, out)


def _add(options: dict[str, Any], out: OutputWrapper) -> None:
    server = external_actions.add(
        by=None,
        name=options["name"],
        base_url=options["address"],
        api_key=_read_key() if options["key_from_stdin"] else "",
    )
    out.write(external.describe(server, external.check(server)))


def _set(options: dict[str, Any], out: OutputWrapper) -> None:
    server = _server(options)
    new_key = "" if options["forget_key"] else _read_key() if options["key_from_stdin"] else None
    external_actions.change(
        server,
        by=None,
        name=options["new_name"] or server.name,
        base_url=options["address"] or server.base_url,
        api_key=new_key,
    )
    out.write("Saved.")


def _list(options: dict[str, Any], out: OutputWrapper) -> None:
    for server in ExternalServer.objects.all():
        out.write(f"{server.name}  {server.base_url}  {server.word}  {server.problem}".rstrip())
    for offer in external.offers():
        for place in offer.places:
            served = f"  served as {place.served.slug}" if place.served else ""
            out.write(f"  {offer.name}  {place.server.name}{served}")


def _check(options: dict[str, Any], out: OutputWrapper) -> None:
    server = _server(options)
    out.write(external.describe(server, external.check(server)))


def _enable(options: dict[str, Any], out: OutputWrapper) -> None:
    external_actions.enable(_server(options), by=None)
    out.write("Switched on.")


def _disable(options: dict[str, Any], out: OutputWrapper) -> None:
    external_actions.disable(_server(options), by=None)
    out.write("Switched off.")


def _remove(options: dict[str, Any], out: OutputWrapper) -> None:
    external_actions.remove(_server(options), by=None)
    out.write("Forgotten.")


def _serve(options: dict[str, Any], out: OutputWrapper) -> None:
    served = external_actions.serve(_server(options), options["model"], by=None, slug=options["slug"])
    out.write(f"Served as {served.slug}.")


def _server(options: dict[str, Any]) -> ExternalServer:
    server = ExternalServer.objects.filter(name=options["name"]).first()
    if server is None:
        raise CommandError(
            f"There is no server named {options['name']!r}; `models external list` shows them."
        )
    return server


def _read_key() -> str:
    return getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
