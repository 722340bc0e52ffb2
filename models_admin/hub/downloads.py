"""The work of downloads, on the node that the files are for.

`run` is one attempt. It may be called twice, late or never: the row says whether there is something to do, the lock on
the growing file lets only one work on it, and what is on the disk is never fetched again. What a killed worker leaves
behind is a row that says `running` and a file that nobody locks; `waiting` finds it, and the next attempt goes on.
"""

import errno
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO
from uuid import UUID

import httpx
import structlog
from django.db import DatabaseError, InterfaceError, close_old_connections
from django.db.models import F, Sum

from llamaproj import env
from llamaproj.errors import LlamaProjError
from models_admin import events, notes
from models_admin.files import catalog, model_folder
from models_admin.files.model_folder import Place, PlaceError, TakenError
from models_admin.hub import hub, transfer
from models_admin.hub.transfer import Control, Patience, TransferError, Wanted
from models_admin.models import Download, Node
from models_admin.models.download import WantedFile
from models_admin.states import DownloadState as S

log = structlog.get_logger(__name__)

# Of the four threads of a node's worker the others look after its models.
AT_ONCE = 2
# A full disk would harm everything else on the machine.
RESERVE_BYTES = 2**30
# People see what they asked for within a second.
_WATCH_S = 0.8
_RATE_OVER_S = 6.0
_READ_BYTES = 2**20

_running: set[UUID] = set()
_lock = threading.Lock()
_stopping = threading.Event()


class _Cancelled(Exception):
    """Somebody pressed Cancel."""


class _WorkerStopsError(Exception):
    """The worker is asked to end; another goes on."""


@dataclass(frozen=True)
class _Job:
    """One file with its place."""

    wanted: Wanted
    path: str
    place: Place

    @classmethod
    def of(cls, file: WantedFile) -> "_Job":
        wanted = Wanted(file["size_bytes"], file["sha256"], file["git_sha1"])
        # Without any checksum the commit tells one content from another.
        return cls(
            wanted, file["path"], Place(file["target"], file["sha256"] or file["git_sha1"] or "unknown")
        )


def waiting(node: Node) -> list[UUID]:
    """The node's downloads that its worker should take up now, the oldest first, no more than it has room for."""
    with _lock:
        room, running = AT_ONCE - len(_running), set(_running)
    rows = Download.objects.for_workers().filter(node=node).exclude(pk__in=running).order_by("created_at")
    return list(rows.values_list("pk", flat=True)[: max(0, room)])


def stop_all() -> None:
    """Let go of what this process downloads; it goes on in another one, or later."""
    _stopping.set()


def run(pk: UUID, patience: Patience | None = None) -> bool:
    """Do what the download needs on this machine, until it ends, is cancelled, or this worker stops.

    False when there was nothing to do, or others do it.
    """
    with _slot(pk) as has_slot:
        if not has_slot:
            return False
        download = Download.objects.select_related("node").filter(pk=pk, node__name=env.NODE_NAME).first()
        if download is None:
            return False
        jobs = [_Job.of(file) for file in download.files]
        if download.state == S.CANCELLED:
            _throw_away(download, jobs)
            return True
        if download.state == S.RUNNING or download.move_to(S.RUNNING):
            return _attempt(download, jobs, patience or Patience())
        return False


@contextmanager
def _slot(pk: UUID) -> Iterator[bool]:
    """One of this process's few places. False where all are taken, or it is being worked on already."""
    with _lock:
        free = len(_running) < AT_ONCE and pk not in _running and not _stopping.is_set()
        if free:
            _running.add(pk)
    try:
        yield free
    finally:
        if free:
            with _lock:
                _running.discard(pk)


def _attempt(download: Download, jobs: list[_Job], patience: Patience) -> bool:
    """False when another process works on it: that one says what becomes of it."""
    control = Control()
    try:
        with _watched(download, control), ExitStack() as locks:
            files = {job: locks.enter_context(job.place.open_partial()) for job in _missing(jobs, control)}
            _check_disk(download, sum(job.wanted.size_bytes for job in files) - _present(files))
            with transfer.client(patience) as http:
                for job, file in files.items():
                    _fetch(http, download, job, file, control, patience)
    except TakenError:
        return False
    except _Cancelled:
        _throw_away(download, jobs)
    except _WorkerStopsError:
        download.move_to(
            S.QUEUED, "Goes on when the machine's worker is back.", done_bytes=control.done_bytes
        )
    except (TransferError, PlaceError, LlamaProjError) as error:
        _fail(download, str(error), control)
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        _fail(
            download,
            "The disk is full." if full else f"The file can't be written: {error.strerror}.",
            control,
        )
    else:
        _finish(download)
    return True


def _fetch(
    http: httpx.Client, download: Download, job: _Job, file: BinaryIO, control: Control, patience: Patience
) -> None:
    url = hub.address(download.repository, download.revision, job.path)
    what = f"{download.repository}/{job.path}"
    try:
        transfer.fetch(
            http,
            url,
            job.wanted,
            file,
            control,
            headers=hub.headers(),
            refused=lambda status, headers: hub.refusal(status, headers, what),
            patience=patience,
        )
    except TransferError as error:
        if error.spoilt:
            control.done_bytes -= file.seek(0, 2)
            file.truncate(0)
            job.place.unlink_partial()
        raise
    job.place.finish(file)


def _missing(jobs: list[_Job], control: Control) -> list[_Job]:
    """The files that aren't there yet. What is there under such a name is checked, never replaced."""
    missing = []
    for job in jobs:
        size = job.place.holds()
        if size is None:
            missing.append(job)
            continue
        if size != job.wanted.size_bytes:
            raise PlaceError(f"There is another file named {job.place.path} already; move it away first.")
        with job.place.open_finished() as file:
            try:
                transfer.check(file, job.wanted, control)
            except TransferError:
                raise PlaceError(
                    f"There is another file named {job.place.path} already; move it away first."
                ) from None
    return missing


def _present(files: dict[_Job, BinaryIO]) -> int:
    """What earlier attempts have left, in bytes."""
    return sum(min(file.seek(0, 2), job.wanted.size_bytes) for job, file in files.items())


def _check_disk(download: Download, needed: int) -> None:
    """Raise `TransferError` unless there is room for it beside what others still fetch."""
    others = Download.objects.filter(node=download.node, state=S.RUNNING).exclude(pk=download.pk)
    promised: int = others.aggregate(left=Sum(F("size_bytes") - F("done_bytes")))["left"] or 0
    free = model_folder.free_bytes()
    if needed > free - promised - RESERVE_BYTES:
        raise TransferError(
            f"The disk has too little room: {_gib(needed)} are needed, {_gib(free)} are free"
            + (f", of which other downloads need {_gib(promised)}" if promised else "")
            + f", and {_gib(RESERVE_BYTES)} stay free."
        )


@contextmanager
def _watched(download: Download, control: Control) -> Iterator[None]:
    """Have a second thread tell how far it is, and interrupt it when it should end."""
    over = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(download, control, over), name=f"download {download.pk}", daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(download: Download, control: Control, over: threading.Event) -> None:
    seen: deque[tuple[float, int]] = deque()
    try:
        while not over.wait(_WATCH_S):
            try:
                _look(download, control, seen)
            except (DatabaseError, InterfaceError) as error:
                # The bytes go on; whoever cancels meanwhile is heard when it is back.
                log.warning(
                    "a download's progress could not be noted", download=str(download.pk), error=str(error)
                )
                close_old_connections()
    finally:
        close_old_connections()


def _look(download: Download, control: Control, seen: deque[tuple[float, int]]) -> None:
    done, now = control.done_bytes, time.monotonic()
    if _stopping.is_set():
        control.interrupt(_WorkerStopsError())
    if model_folder.free_bytes() < RESERVE_BYTES:
        control.interrupt(
            TransferError(
                f"The disk is almost full: {_gib(RESERVE_BYTES)} must stay free. Retry goes on from here."
            )
        )
    if not Download.objects.filter(pk=download.pk, state=S.RUNNING).update(done_bytes=done):
        control.interrupt(_Cancelled())
    seen.append((now, done))
    while now - seen[0][0] > _RATE_OVER_S:
        seen.popleft()
    (began, first), spent = seen[0], now - seen[0][0]
    rate = max(0.0, (done - first) / spent) if spent and began else 0.0
    notes.tell_download(download.pk, rate, control.waits_for)
    events.downloads_changed()


def _fail(download: Download, reason: str, control: Control) -> None:
    log.warning("a download failed", download=str(download.pk), repository=download.repository, reason=reason)
    if not download.move_to(S.FAILED, reason, done_bytes=max(0, control.done_bytes)):
        # Cancelled in the same moment.
        _throw_away(download, [_Job.of(file) for file in download.files])


def _finish(download: Download) -> None:
    if download.move_to(S.DONE, done_bytes=download.size_bytes):
        log.info("a download is complete", download=str(download.pk), repository=download.repository)
    catalog.scan(download.node)
    events.files_changed()


def _throw_away(download: Download, jobs: list[_Job]) -> None:
    """Remove what has come of a cancelled download, unless another one works on the same file."""
    for job in jobs:
        try:
            job.place.remove_partial()
        except (PlaceError, OSError) as error:
            log.warning("a partial file could not be removed", place=job.place.target, error=str(error))
    Download.objects.filter(pk=download.pk, state=S.CANCELLED).update(done_bytes=0)
    events.downloads_changed()


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
