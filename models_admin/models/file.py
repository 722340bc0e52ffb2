"""Model files found on nodes."""

from typing import ClassVar

from django.db import models
from django.db.models.fields.json import KT
from django.db.models.functions import Cast
from django.utils import timezone

from models_admin.models.node import Node


class ModelFileQuerySet(models.QuerySet["ModelFile"]):
    """Files, by what can be done with them."""

    def servable(self) -> "ModelFileQuerySet":
        """Those from which a model can be served; see `ModelFile.obstacle`."""
        return self.filter(missing=False, error="", kind=ModelFile.Kind.MODEL)

    def listed(self) -> "ModelFileQuerySet":
        """With all that a list shows, `parts` among it, and without the headers and templates, which are long."""
        light = ModelFile.objects.defer("metadata", "chat_template")
        parts = Cast(KT("metadata__parts"), models.IntegerField())
        beside = models.Prefetch("projector", light)
        projected = models.Prefetch("projects_for", light)
        return (
            self.defer("metadata", "chat_template")
            .annotate(parts=parts)
            .select_related("node")
            .prefetch_related("served", beside, projected)
        )


class ModelFile(models.Model):
    """A model found by a scan of a node's folders. `error` says why it can't be used."""

    class Kind(models.TextChoices):
        """What the file holds."""

        MODEL = "model"
        PROJECTOR = "projector", "projector of a multimodal model"
        ADAPTER = "adapter", "LoRA adapter"

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="files")
    path = models.CharField(max_length=1024, help_text="Of a model in several parts: the first.")
    kind = models.CharField(max_length=12, choices=Kind, default=Kind.MODEL)
    # The same content has the same id on every node and under every name. Empty where what is there is broken; of a
    # file that is missing or closed to us it stays as it was.
    content_id = models.CharField(max_length=64, blank=True, db_index=True)
    projector = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="projects_for"
    )
    size_bytes = models.BigIntegerField()
    modified_at = models.DateTimeField()
    changed_at = models.DateTimeField(
        null=True, blank=True, help_text="When a scan found other content under a known path."
    )
    name = models.CharField(max_length=200, blank=True)
    architecture = models.CharField(max_length=80, blank=True)
    parameters = models.BigIntegerField(null=True, blank=True)
    quantization = models.CharField(max_length=40, blank=True)
    context_tokens = models.PositiveIntegerField(null=True, blank=True)
    chat_template = models.TextField(blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    error = models.TextField(blank=True)
    missing = models.BooleanField(default=False)
    scanned_at = models.DateTimeField(default=timezone.now)

    objects = ModelFileQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["path"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["node", "path"], name="one_row_per_file")]

    def __str__(self) -> str:
        return self.path

    @property
    def file_name(self) -> str:
        """The file without its folder."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def folder(self) -> str:
        """Where it lies."""
        return self.path.rpartition("/")[0]

    @property
    def obstacle(self) -> str:
        """Why no model can be served from it now, as a sentence; empty where one can."""
        if self.missing:
            return "This file isn't there any more."
        if self.error:
            return self.error
        return _ADDITIONS.get(self.kind, "")


_ADDITIONS: dict[str, str] = {
    ModelFile.Kind.PROJECTOR: "This is a projector for images or sound, an addition to a model, not a model.",
    ModelFile.Kind.ADAPTER: "This is an adapter (LoRA), an addition to a model, not a model.",
}
