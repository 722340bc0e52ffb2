"""What people do with the hub and with downloads. The node's worker makes it so."""

from functools import partial

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Greatest

from accounts import audit
from accounts.models import User
from llamaproj.errors import Conflict, InvalidInput
from models_admin.hub import hub
from models_admin.hub import tasks as download_tasks
from models_admin.hub.hub import Choice, Part, Repository
from models_admin.models import Download, Node
from models_admin.models.download import WantedFile
from models_admin.states import DownloadState as S


def ask(
    node: Node, repository: str, path: str, *, by: User | None, projector: str = "", revision: str = "main"
) -> Download:
    """Have the node fetch the model that begins with `path`, and the projector, if one is named.

    Asking twice is asking once. Raises what `hub` raises, and `Conflict` for a machine that isn't there.
    """
    found = hub.look(repository, revision)
    choice = found.choice(path)
    files = wanted(found, choice, found.choice(projector) if projector else None)
    if not node.is_alive:
        raise Conflict(f"The machine {node.name} doesn't answer; start its worker first.")
    return _queue(node, found, files, by=by)


def wanted(repository: Repository, choice: Choice, projector: Choice | None = None) -> list[WantedFile]:
    """The files of a choice with the places they get: owner/name/… as on the hub, the projector beside its model."""
    folder = "/".join((repository.name, *choice.path.split("/")[:-1]))
    files = [_file(part, f"{repository.name}/{part.path}") for part in choice.parts]
    beside = projector.parts if projector else ()
    files += [_file(part, f"{folder}/{part.path.rsplit('/', 1)[-1]}") for part in beside]
    for file in files:
        if not hub.is_good_path(file["target"]):
            raise InvalidInput("The file's name on the hub can't be used here.", param="path")
    return files


@transaction.atomic
def cancel(download: Download, *, by: User | None) -> None:
    """End it and throw away what has come. Of a failed one, too. Raises `Conflict` for a complete one."""
    # Not 0, so that the node looks for leftovers even if nobody has counted them yet.
    if download.move_to(S.CANCELLED, done_bytes=Greatest(F("done_bytes"), 1)):
        audit.record(by, "download.cancel", download)
        transaction.on_commit(partial(download_tasks.send, download.node.name, download.pk))
    else:
        download.refresh_from_db()
        if download.state != S.CANCELLED:
            raise Conflict("This download is complete; remove the file on the machine itself.")


@transaction.atomic
def retry(download: Download, *, by: User | None) -> None:
    """Go on with one that failed, or begin one that was cancelled again. Raises `Conflict` for a complete one."""
    if download.move_to(S.QUEUED):
        audit.record(by, "download.retry", download)
        transaction.on_commit(partial(download_tasks.send, download.node.name, download.pk))
    else:
        download.refresh_from_db()
        if download.state == S.DONE:
            raise Conflict("This download is complete.")


@transaction.atomic
def _queue(node: Node, repository: Repository, files: list[WantedFile], *, by: User | None) -> Download:
    # Two people who ask at once get one download.
    node = Node.objects.select_for_update().get(pk=node.pk)
    for other in Download.objects.filter(node=node, repository=repository.name).unfinished():
        if other.files == files:
            return other
    download = Download.objects.create(
        node=node,
        repository=repository.name,
        revision=repository.commit,
        files=files,
        size_bytes=sum(file["size_bytes"] for file in files),
        asked_by=by,
    )
    audit.record(by, "download.ask", download, files=[file["target"] for file in files])
    transaction.on_commit(partial(download_tasks.send, node.name, download.pk))
    return download


def _file(part: Part, target: str) -> WantedFile:
    return WantedFile(
        path=part.path,
        target=target,
        size_bytes=part.size_bytes,
        sha256=part.sha256,
        git_sha1=part.git_sha1,
    )
