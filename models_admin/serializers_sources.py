"""Where models come from: downloads and external servers, as REST has them."""

from typing import ClassVar

from drf_spectacular.utils import OpenApiExample, extend_schema_serializer
from rest_framework import serializers

from accounts.models import Team
from llamaproj.rest import Strict
from models_admin import notes
from models_admin.models import Download, ExternalServer, Node


class DownloadSerializer(serializers.ModelSerializer[Download]):
    """Files on their way from a hub to a machine."""

    node = serializers.SlugRelatedField[Node](slug_field="name", read_only=True)
    files = serializers.SerializerMethodField(help_text="Below the machine's first model folder.")
    bytes_per_second = serializers.SerializerMethodField()

    class Meta:
        model = Download
        fields = (
            "id", "node", "repository", "revision", "files", "state", "reason", "size_bytes", "done_bytes", "percent",
            "bytes_per_second", "created_at", "ended_at",
        )  # fmt: skip
        read_only_fields = fields

    def get_files(self, download: Download) -> list[str]:
        """Their places."""
        return [file["target"] for file in download.files]

    def get_bytes_per_second(self, download: Download) -> float | None:
        """Lately; null where nobody knows."""
        return notes.download_of(download.pk)[0]


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A model with its projector",
            {
                "node": "workstation",
                "repository": "owner/name-GGUF",
                "path": "name-Q4_K_M.gguf",
                "projector": "mmproj-F16.gguf",
            },
            request_only=True,
        )
    ]
)
class AskedDownloadSerializer(Strict):
    """Which model to fetch, and where to."""

    node = serializers.SlugRelatedField(slug_field="name", queryset=Node.objects.all())
    repository = serializers.CharField(max_length=200, help_text="owner/name on the hub.")
    path = serializers.CharField(max_length=1000, help_text="Of the model's first file there.")
    projector = serializers.CharField(
        max_length=1000, required=False, help_text="Of a projector to go with it."
    )
    revision = serializers.CharField(max_length=100, required=False)


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A vLLM in the building",
            {"name": "vLLM", "base_url": "http://gpu-box:8000/v1", "api_key": "secret"},
            request_only=True,
        )
    ]
)
class ExternalServerSerializer(Strict, serializers.ModelSerializer[ExternalServer]):
    """A server elsewhere that speaks OpenAI's API. Its key is written, never read."""

    api_key = serializers.CharField(
        write_only=True, required=False, allow_blank=True, max_length=1000, help_text="Empty: none."
    )
    has_key = serializers.BooleanField(read_only=True)
    models_offered = serializers.ListField(child=serializers.CharField(), read_only=True)

    class Meta:
        model = ExternalServer
        fields = (
            "id", "name", "base_url", "api_key", "has_key", "enabled", "healthy", "problem", "checked_at",
            "models_offered",
        )  # fmt: skip
        read_only_fields = ("healthy", "problem", "checked_at")
        extra_kwargs: ClassVar[dict[str, dict[str, list[object]]]] = {"name": {"validators": []}}


class ServedElsewhereSerializer(Strict):
    """Which of an external server's models to serve, and under which name."""

    model = serializers.CharField(max_length=200, help_text="What the server calls it.")
    slug = serializers.SlugField(max_length=100, required=False)
    name = serializers.CharField(max_length=120, required=False)
    teams = serializers.SlugRelatedField(
        slug_field="name",
        many=True,
        required=False,
        queryset=Team.objects.all(),
        help_text="None: for everybody.",
    )
