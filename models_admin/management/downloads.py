"""`models download …` and `models downloads`: the hub from the command line."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError, OutputWrapper
from django.db.models import CharField
from django.db.models.functions import Cast

from llamaproj import env
from models_admin.hub import actions as download_actions
from models_admin.hub import hub
from models_admin.models import Download, Node
from models_admin.templatetags.amounts import as_bytes

_MOST = 30
# Of a number; whoever means one of two that begin alike writes more of it.
_SHOWN = 8


def add_arguments(parser: ArgumentParser) -> None:
    """What a download needs."""
    parser.add_argument("repository", help="owner/name on the hub")
    parser.add_argument("file", help="a file of it, or a quantisation such as Q4_K_M")
    parser.add_argument("--node", default=env.NODE_NAME, help="the machine it is for; otherwise this one")
    parser.add_argument("--projector", default="", help="a projector file that goes with it")


def ask(options: dict[str, Any], out: OutputWrapper) -> None:
    """Have the node fetch it. Raises `LlamaProjError` or `CommandError`."""
    node = Node.objects.filter(name=options["node"]).first()
    if node is None:
        raise CommandError(f"There is no node {options['node']!r}.")
    repository = hub.look(options["repository"])
    path = options["file"]
    if not path.lower().endswith(".gguf"):
        labels = {one.label: one.path for one in reversed(repository.choices)}
        if path.upper() not in labels:
            known = ", ".join(sorted(label for label in labels if label)) or "none"
            raise CommandError(f"{repository.name} has no quantisation {path!r}; it has {known}.")
        path = labels[path.upper()]
    download = download_actions.ask(
        node, repository.name, path, projector=options["projector"], revision=repository.commit, by=None
    )
    size = as_bytes(download.size_bytes)
    _say(
        options,
        out,
        f"{download.file_name} ({size}) is on its way to {node.name}; `models downloads` shows how far.",
    )


def add_choice(parser: ArgumentParser) -> None:
    """Which download."""
    parser.add_argument("download", help="its number, or how that begins, as `models downloads` shows it")


def cancel(options: dict[str, Any], out: OutputWrapper) -> None:
    """End it and throw away what has come. Raises `LlamaProjError` or `CommandError`."""
    download_actions.cancel(_chosen(options), by=None)
    _say(options, out, "Cancelled.")


def retry(options: dict[str, Any], out: OutputWrapper) -> None:
    """Go on with it. Raises `LlamaProjError` or `CommandError`."""
    download_actions.retry(_chosen(options), by=None)
    _say(options, out, "On its way again.")


def _chosen(options: dict[str, Any]) -> Download:
    said = options["download"].lower()
    numbered = Download.objects.select_related("node").annotate(number=Cast("pk", CharField()))
    found = list(numbered.filter(number__startswith=said)[:2])
    if len(found) != 1:
        how_many = "More than one download begins with" if found else "There is no download"
        raise CommandError(f"{how_many} {said!r}; `models downloads` shows them.")
    return found[0]


def _say(options: dict[str, Any], out: OutputWrapper, text: str) -> None:
    if options["verbosity"]:
        out.write(text)


def show(out: OutputWrapper) -> None:
    """A line for each download, the newest first."""
    for one in Download.objects.select_related("node")[:_MOST]:
        amount = f"{as_bytes(one.done_bytes)} of {as_bytes(one.size_bytes)}"
        words = (
            str(one.pk)[:_SHOWN],
            f"{one.state:<9} {one.percent:>3} %",
            amount,
            f"{one.file_name} → {one.node.name}",
            one.reason,
        )
        out.write("  ".join(word for word in words if word))
