"""What replicas really took."""

from typing import ClassVar

from django.db import models
from django.utils import timezone


class Footprint(models.Model):
    """The memory a model took when it was launched in one way: corrects the next estimate."""

    content_id = models.CharField(max_length=64)
    # A digest of the parameters that decide about memory.
    launch_key = models.CharField(max_length=64)
    estimated_bytes = models.BigIntegerField()
    measured_bytes = models.BigIntegerField()
    measured_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["content_id", "launch_key"], name="one_footprint_per_launch")
        ]

    def __str__(self) -> str:
        return f"{self.content_id[:12]}: {self.measured_bytes}"
