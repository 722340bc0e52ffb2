"""Files on their way from a hub."""

import uuid
from typing import ClassVar

from django.db import models
from django.utils import timezone

from accounts.models import User
from models_admin.models.node import Node
from models_admin.states import DownloadState


class Download(models.Model):
    """One model (all its parts) being fetched to one node."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="downloads")
    repository = models.CharField(max_length=200)
    revision = models.CharField(max_length=100, default="main")
    # [{"path": "…", "size_bytes": …, "sha256": "…"}, …]
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

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.repository} → {self.node}"
