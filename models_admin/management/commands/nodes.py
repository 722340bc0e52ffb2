"""Nodes from the command line."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from llamaproj.errors import LlamaProjError
from models_admin.models import Node
from models_admin.nodes import actions as node_actions
from models_admin.nodes import overview as node_overview
from models_admin.nodes.forms import NodeForm
from models_admin.templatetags.amounts import as_bytes


class Command(BaseCommand):
    help = "List, change and remove the machines that run models."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One subcommand a verb."""
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        verbs.add_parser("list", help="show the machines and what runs there")
        verbs.add_parser("accept", help="place replicas there again").add_argument("name")
        verbs.add_parser("drain", help="place nothing new there; what runs goes on").add_argument("name")
        change = verbs.add_parser("set", help="change labels or the memory limit")
        change.add_argument("name")
        change.add_argument("--labels", help='separated by commas; "" for none')
        change.add_argument("--memory-gib", help='what all replicas together may take; "" for all of it')
        verbs.add_parser("remove", help="forget a machine that is silent").add_argument("name")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the verb; a refusal is one sentence."""
        try:
            getattr(self, "do_" + options["verb"])(options)
        except LlamaProjError as error:
            raise CommandError(error.message) from error

    def do_list(self, options: dict[str, Any]) -> None:
        """A line for each machine."""
        rows = [
            ("NODE", "STATE", "HEARD OF", "ADDRESS", "FREE", "MEMORY", "GPUS", "REPLICAS", "LABELS", "ENGINE")
        ]
        for one in node_overview.nodes():
            node = one.node
            memory = (as_bytes(node.memory_free_bytes), as_bytes(node.memory_bytes))
            counts = (str(len(node.gpus)), str(len(one.replicas)))
            rows.append(
                (
                    node.name,
                    one.word,
                    one.heard,
                    node.address,
                    *memory,
                    *counts,
                    ",".join(node.labels),
                    node.engine,
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            self.stdout.write(
                "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            )
        for one in node_overview.nodes():
            if one.trouble:
                self.stdout.write(one.trouble)

    def do_accept(self, options: dict[str, Any]) -> None:
        """Place replicas there again."""
        node_actions.accept(_node(options), True, by=None)
        self.stdout.write("Replicas are placed there again.")

    def do_drain(self, options: dict[str, Any]) -> None:
        """Place nothing new there."""
        node_actions.accept(_node(options), False, by=None)
        self.stdout.write("Nothing new is placed there; what runs goes on.")

    def do_set(self, options: dict[str, Any]) -> None:
        """Change what is given; the form of the page checks it."""
        node = _node(options)
        typed = {"labels": options["labels"], "memory_limit_gib": options["memory_gib"]}
        given = {name: text for name, text in typed.items() if text is not None}
        form = NodeForm(node, {**NodeForm(node).initial, **given})
        if not form.is_valid():
            raise CommandError(" ".join(str(error) for errors in form.errors.values() for error in errors))
        node_actions.change(node, by=None, **form.values())
        self.stdout.write("Changed.")

    def do_remove(self, options: dict[str, Any]) -> None:
        """Forget a silent machine."""
        node = _node(options)
        node_actions.remove(node, by=None)
        self.stdout.write(f"{node.name} is forgotten. It is back as soon as its worker runs again.")


def _node(options: dict[str, Any]) -> Node:
    node = Node.objects.filter(name=options["name"]).first()
    if node is None:
        raise CommandError(f"There is no machine {options['name']!r}; `nodes list` shows them.")
    return node
