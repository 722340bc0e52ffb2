"""Models from the command line."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from llamaproj import env
from llamaproj.errors import LlamaProjError
from models_admin import actions, lifecycle, remedies
from models_admin.files import catalog
from models_admin.management import downloads, external, settings
from models_admin.models import ModelFile, Node, ServedModel
from models_admin.nodes import facts as node_facts
from models_admin.states import InstanceState as S


class Command(BaseCommand):
    help = "Find, list, start and stop models."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One subcommand a verb."""
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        verbs.add_parser("scan", help="read this machine's model folders")
        verbs.add_parser("list", help="show models and files")
        for verb in ("start", "stop", "restart"):
            verbs.add_parser(verb, help=f"{verb} a model").add_argument("slug")
        add = verbs.add_parser("add", help="serve a file; it is added stopped")
        add.add_argument("file", help="its path, as `models list` shows it")
        add.add_argument("--slug", default="", help="the short name; else one of the file's name")
        add.add_argument("--name", default="", help="the name that people read")
        add.add_argument("--node", default=env.NODE_NAME, help="the machine that has the file")
        verbs.add_parser("remove", help="serve a model no more; its file stays").add_argument("slug")
        cure = verbs.add_parser("remedies", help="why a model doesn't come up, and what may help")
        cure.add_argument("slug")
        cure.add_argument("--apply", metavar="CODE", help="do this, and start the model again")
        scale = verbs.add_parser("scale", help="keep so many replicas of a model running")
        scale.add_argument("slug")
        scale.add_argument("replicas", type=int, metavar="N", help="0: load it when somebody asks for it")
        scale.add_argument("--most", type=int, metavar="N", help="start more, up to so many, when many wait")
        change = verbs.add_parser("set", help="change a model's parameters")
        change.add_argument("slug")
        settings.add_assignments(change, least_one=True)
        config = verbs.add_parser(
            "config", help="show or change how models are launched that don't say otherwise"
        )
        settings.add_assignments(config, least_one=False)
        verbs.add_parser("install-demo", help="serve the demo model if its file is there")
        stop_all = verbs.add_parser(
            "stop-all", help="end a node's llama-servers; what is wanted stays wanted"
        )
        stop_all.add_argument("--node", default=env.NODE_NAME)
        external.add_arguments(verbs.add_parser("external", help="servers elsewhere that speak OpenAI's API"))
        downloads.add_arguments(verbs.add_parser("download", help="fetch a model from the hub"))
        verbs.add_parser("downloads", help="show what is on its way, and what has come")
        for verb, does in (
            ("cancel", "end a download"),
            ("retry", "go on with a download that failed or ended"),
        ):
            downloads.add_choice(verbs.add_parser(f"{verb}-download", help=does))
        # Also after the verb, as other commands have it.
        for each in verbs.choices.values():
            each.add_argument("-v", "--verbosity", type=int, choices=range(4), default=1)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the verb; a refusal is one sentence."""
        try:
            getattr(self, "do_" + options["verb"].replace("-", "_"))(options)
        except LlamaProjError as error:
            raise CommandError(error.message) from error

    def do_scan(self, options: dict[str, Any]) -> None:
        """Read the folders of this machine."""
        found = catalog.scan(node_facts.this_node())
        folders = ", ".join(str(folder) for folder in env.MODELS_DIRS)
        self._say(
            options, f"{found.good} models, {found.broken} broken, {found.missing} missing in {folders}"
        )
        for file in (
            ModelFile.objects.filter(node__name=env.NODE_NAME).exclude(error="").only("path", "error")
        ):
            self._say(options, f"  {file.path}: {file.error}")

    def do_list(self, options: dict[str, Any]) -> None:
        """A line for each replica, then the files nobody serves."""
        rows = [("MODEL", "STATE", "SINCE", "NODE", "PORT", "PID", "MEMORY", "FILE")]
        for served in ServedModel.objects.select_related("file", "external").prefetch_related(
            "instances__node"
        ):
            file = served.file.file_name if served.file else served.external_name
            replicas = [one for one in served.instances.all() if one.state != S.STOPPED]
            if not replicas:
                rows.append((served.slug, "stopped", "", "", "", "", "", file))
            for one in replicas:
                since = f"{(timezone.now() - one.state_since).total_seconds():.0f} s"
                memory = f"{one.memory_bytes / 2**20:.0f} MiB" if one.memory_bytes else ""
                port, pid = str(one.port or ""), str(one.pid or "")
                rows.append((served.slug, one.state, since, one.place, port, pid, memory, file))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            self.stdout.write(
                "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            )
        for unserved in ModelFile.objects.filter(served__isnull=True).only("path", "error", "quantization"):
            self.stdout.write(f"not served: {unserved.path}  {unserved.error or unserved.quantization}")

    def do_start(self, options: dict[str, Any]) -> None:
        """Ask for a replica."""
        actions.start(self._served(options), by=None)
        self._say(options, "Asked to start.")

    def do_stop(self, options: dict[str, Any]) -> None:
        """Ask for none."""
        actions.stop(self._served(options), by=None)
        self._say(options, "Asked to stop.")

    def do_restart(self, options: dict[str, Any]) -> None:
        """Ask for new ones."""
        actions.restart(self._served(options), by=None)
        self._say(options, "Asked to start anew.")

    def do_add(self, options: dict[str, Any]) -> None:
        """Serve a file."""
        file = ModelFile.objects.filter(node__name=options["node"], path=options["file"]).first()
        if file is None:
            raise CommandError(
                f"{options['node']} has no file {options['file']}; `models scan` looks for new ones."
            )
        served = actions.add(file, by=None, slug=options["slug"], name=options["name"])
        self._say(options, f"The model is {served.slug}; `models start {served.slug}` starts it.")

    def do_remove(self, options: dict[str, Any]) -> None:
        """Serve it no more."""
        actions.remove(self._served(options), by=None)
        self._say(options, "Removed.")

    def do_remedies(self, options: dict[str, Any]) -> None:
        """Say what is wrong and what may help, or do it."""
        served = self._served(options)
        if options["apply"]:
            remedy = remedies.apply(served, options["apply"], by=None)
            self._say(options, f"{remedy.label}: asked to start.")
            return
        troubles = remedies.troubles(served)
        if not troubles:
            self._say(options, "Nothing is known to be wrong.")
        for trouble in troubles:
            self.stdout.write(trouble.diagnosis.summary)
            for remedy in trouble.remedies:
                self.stdout.write(f"  {remedy.code}: {remedy.label}. {remedy.effect}")

    def do_download(self, options: dict[str, Any]) -> None:
        """Have a node fetch a model."""
        downloads.ask(options, self.stdout)

    def do_downloads(self, options: dict[str, Any]) -> None:
        """A line for each download."""
        downloads.show(self.stdout)

    def do_cancel_download(self, options: dict[str, Any]) -> None:
        """End one."""
        downloads.cancel(options, self.stdout)

    def do_retry_download(self, options: dict[str, Any]) -> None:
        """Go on with one."""
        downloads.retry(options, self.stdout)

    def do_external(self, options: dict[str, Any]) -> None:
        """Look after external servers."""
        external.run(options, self.stdout)

    def do_scale(self, options: dict[str, Any]) -> None:
        """Set how many replicas run."""
        actions.scale(self._served(options), by=None, replicas=options["replicas"], most=options["most"])
        self._say(options, "Asked to scale.")

    def do_set(self, options: dict[str, Any]) -> None:
        """Change a model's parameters."""
        for sentence in settings.change_model(self._served(options), options["assignments"]):
            self._say(options, sentence)

    def do_config(self, options: dict[str, Any]) -> None:
        """Show or change the portal's configuration."""
        for sentence in settings.change_portal(options["assignments"]):
            self._say(options, sentence)

    def do_install_demo(self, options: dict[str, Any]) -> None:
        """Find the file and serve it."""
        node = node_facts.this_node()
        catalog.scan(node)
        served = actions.install_demo(node)
        self._say(
            options, f"The demo model is {served.slug}." if served else "There is no demo model's file."
        )

    def do_stop_all(self, options: dict[str, Any]) -> None:
        """End the processes; runs on that machine."""
        if not Node.objects.filter(name=options["node"]).exists():
            return
        count = lifecycle.stop_all(options["node"])
        self._say(options, f"{count} ended.")

    def _served(self, options: dict[str, Any]) -> ServedModel:
        served = ServedModel.objects.filter(slug=options["slug"]).first()
        if served is None:
            raise CommandError(f"There is no model {options['slug']!r}; `models list` shows them.")
        return served

    def _say(self, options: dict[str, Any], text: str) -> None:
        if options["verbosity"]:
            self.stdout.write(text)
