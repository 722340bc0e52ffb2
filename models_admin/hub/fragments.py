"""The pieces of the downloads page: what runs and what has run, and what the hub has."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from django.template.loader import render_to_string
from django.utils import timezone

from accounts.models import User
from llamaproj import env
from llamaproj.errors import LlamaProjError
from models_admin import access, notes
from models_admin.engine import launch_config
from models_admin.files.gguf_info import GGUFInfo
from models_admin.hub import hub, remote_header, suitability
from models_admin.hub.hub import Choice, Found, Repository
from models_admin.hub.suitability import Suitability, Verdict
from models_admin.models import Download, ModelFile, Node, PortalConfig
from models_admin.states import DownloadState as S
from models_admin.templatetags.amounts import age

_HISTORY = 20
# Headers that one look at a repository may ask the hub for.
_HEADERS = 2
WORDS = {
    S.QUEUED: "waiting",
    S.RUNNING: "downloading",
    S.DONE: "complete",
    S.FAILED: "failed",
    S.CANCELLED: "cancelled",
}
_TONES = {Verdict.FITS: "ok", Verdict.LESS_CONTEXT: "warn", Verdict.TOO_LARGE: "bad"}


@dataclass(frozen=True)
class Row:
    """One download with its figures."""

    download: Download
    rate: float | None
    waits_for: str
    file: ModelFile | None

    @property
    def word(self) -> str:
        """Its state in a word."""
        return WORDS[S(self.download.state)]

    @property
    def remaining(self) -> str:
        """How long it will take at this rate, in its largest unit; empty where nobody can say."""
        left = self.download.size_bytes - self.download.done_bytes
        if not self.rate or left <= 0:
            return ""
        return age(timezone.now() - timedelta(seconds=left / self.rate))


@dataclass(frozen=True)
class Judged:
    """How a choice suits one node."""

    node: Node
    room_bytes: int
    suitability: Suitability

    @property
    def tone(self) -> str:
        """The colour of its badge."""
        return _TONES[self.suitability.verdict]


@dataclass(frozen=True)
class Offer:
    """One choice of a repository, judged for each living node."""

    choice: Choice
    judged: tuple[Judged, ...]

    @property
    def from_header(self) -> bool:
        """Whether the judgement knows more than the size."""
        return any(one.suitability.from_header for one in self.judged)


def downloads(user: User) -> str:
    """The list of downloads, as the page includes it and the socket sends it."""
    manager = access.may_manage(user)
    return render_to_string(
        "models_admin/_downloads.html", {"user": user, "manager": manager, **downloads_context()}
    )


def downloads_context() -> dict[str, object]:
    """What `_downloads.html` shows."""
    rows = Download.objects.select_related("node", "asked_by")
    current = rows.filter(state__in=[S.QUEUED, S.RUNNING, S.FAILED]).order_by("created_at")
    ended = rows.filter(state__in=[S.DONE, S.CANCELLED])[:_HISTORY]
    return {"current": [_row(one) for one in current], "ended": [_row(one) for one in ended]}


def hub_context(query: str, name: str) -> dict[str, object]:
    """What `_downloads_hub.html` shows: results of a search, or a repository; or the sentence why not."""
    context: dict[str, object] = {"query": query, "name": name, "hub": env.HF_ENDPOINT}
    try:
        if name:
            return context | _repository_context(hub.look(name))
        found: list[Found] | None = hub.search(query) if query else None
    except LlamaProjError as error:
        return context | {"error": error.message}
    return context | {"found": found}


def _repository_context(repository: Repository) -> dict[str, object]:
    nodes = list(Node.objects.alive())
    portal = PortalConfig.current()
    return {
        "repository": repository,
        "repository_page": hub.page(repository.name),
        "offers": offers_of(repository, nodes, portal),
        "nodes": nodes,
        "config": launch_config.of_portal(portal),
        "has_token": bool(env.HF_TOKEN),
    }


def offers_of(repository: Repository, nodes: list[Node], portal: PortalConfig) -> list[Offer]:
    """The repository's models, each judged for each of the nodes."""
    config = launch_config.of_portal(portal)
    headers = _headers(repository)
    # A projector is loaded with its model.
    beside = repository.projector.size_bytes if repository.projector else 0
    offers = []
    for choice in repository.choices:
        judged = []
        for node in nodes:
            room = room_of(node, portal)
            suits = suitability.judge(headers.get(choice.stem), choice.size_bytes + beside, room, config)
            judged.append(Judged(node, room, suits))
        offers.append(Offer(choice, tuple(judged)))
    return offers


def room_of(node: Node, portal: PortalConfig) -> int:
    """What models may take on the node when nothing else is loaded."""
    gpus = sum(int(gpu.get("memory_bytes", 0)) for gpu in node.gpus)
    return node.room_bytes(portal.memory_reserve_mib * 2**20) + gpus


def _headers(repository: Repository) -> dict[str, GGUFInfo | None]:
    """The headers of the repository's models, by stem; of the first few."""
    firsts: dict[str, Choice] = {}
    for choice in repository.choices:
        firsts.setdefault(choice.stem, choice)
    few: Iterable[tuple[str, Choice]] = list(firsts.items())[:_HEADERS]
    return {stem: remote_header.header_of(repository, choice) for stem, choice in few}


def _row(download: Download) -> Row:
    rate, waits_for = notes.download_of(download.pk) if download.state == S.RUNNING else (None, "")
    file = None
    if download.state == S.DONE:
        files = ModelFile.objects.filter(node=download.node, missing=False)
        file = (
            files.filter(path__endswith="/" + download.files[0]["target"]).prefetch_related("served").first()
        )
    return Row(download, rate, waits_for, file)
