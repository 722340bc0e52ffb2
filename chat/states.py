"""The states of a message and the moves between them."""

from django.db import models


class MessageStatus(models.TextChoices):
    """Where a message is. A person's own message is always done."""

    QUEUED = "queued"
    LOADING = "loading"
    READING = "reading"
    WRITING = "writing"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


FINAL = frozenset({MessageStatus.DONE, MessageStatus.STOPPED, MessageStatus.FAILED})
