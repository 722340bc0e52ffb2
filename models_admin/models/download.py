"""Files on their way from a hub."""

import uuid
from typing import ClassVar, TypedDict

from django.db import models, transaction
from django.utils import timezone

from accounts.models import User
from models_admin import events
from models_admin.models.node import Node
from models_admin.states import DownloadState

S = DownloadState

# Running again: its worker was stopped. Cancelled after failed: what is left of it is thrown away.
_MOVES: dict[DownloadState, frozenset[DownloadState]] = {
    S.QUEUED: frozenset({S.RUNNING, S.CANCELLED}),
    S.RUNNING: frozenset({S.QUEUED, S.DONE, S.FAILED, S.CANCELLED}),
    S.FAILED: frozenset({S.QUEUED, S.CANCELLED}),
    S.CANCELLED: frozenset({S.QUEUED}),
    S.DONE: frozenset(),
}


class WantedFile(TypedDict):
    """One file of a download, as its row keeps it."""

    path: str  # on the hub
    target: str  # below the node's first model folder
    size_bytes: int
    sha256: str  # empty for a small file that the hub keeps in git
    git_sha1: str


class DownloadQuerySet(models.QuerySet["Download"]):
    """Downloads, by where they are."""

    def unfinished(self) -> "DownloadQuerySet":
        """Those that wait or run."""
        return self.filter(state__in=[S.QUEUED, S.RUNNING])

    def for_workers(self) -> "DownloadQuerySet":
        """Those that a node's worker has something to do for; of a cancelled one, to throw away what came."""
        return self.filter(
            models.Q(state__in=[S.QUEUED, S.RUNNING]) | models.Q(state=S.CANCELLED, done_bytes__gt=0)
        )


class Download(models.Model):
    """One model (all its parts) being fetched to one node, at the commit that `revision` names."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="downloads")
    repository = models.CharField(max_length=200)
    revision = models.CharField(max_length=100, default="main")
    # A list of `WantedFile`.
    files = models.JSONField(default=list)
    state = models.CharField(
        max_length=12, choices=DownloadState, default=DownloadState.QUEUED, db_index=True
    )
    reason = models.TextField(blank=True)
    size_bytes = models.BigIntegerField(default=0)
    done_bytes = models.BigIntegerField(default=0)
    asked_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="downloads")
    created_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = DownloadQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.repository} → {self.node}"

    @property
    def file_name(self) -> str:
        """The first file without its folder."""
        first: WantedFile = self.files[0]
        return first["target"].rsplit("/", 1)[-1]

    @property
    def percent(self) -> int:
        """How much of it is there; 100 only when all is."""
        if self.state == S.DONE:
            return 100
        return min(99, self.done_bytes * 100 // self.size_bytes) if self.size_bytes else 0

    def move_to(self, new: DownloadState, reason: str = "", **fields: object) -> bool:
        """Go to `new`. False when it can't go there from where it is, or another process was first."""
        olds = [old for old, news in _MOVES.items() if new in news]
        ended_at = None if new in {S.QUEUED, S.RUNNING} else timezone.now()
        with transaction.atomic():
            moved = Download.objects.filter(pk=self.pk, state__in=olds).update(
                state=new, reason=reason, ended_at=ended_at, **fields
            )
            if moved:
                transaction.on_commit(events.downloads_changed)
        if moved:
            self.state, self.reason, self.ended_at = new, reason, ended_at
        return bool(moved)
