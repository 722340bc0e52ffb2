"""What a hub has, as REST has it."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema_serializer
from rest_framework import serializers

from models_admin.hub.suitability import Verdict


class AskedSearchSerializer(serializers.Serializer[Any]):
    """Words to search for."""

    q = serializers.CharField(max_length=120, help_text="As one types it on the hub.")


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A repository",
            {
                "name": "owner/name-GGUF",
                "downloads": 12000,
                "likes": 40,
                "changed_at": "2026-05-04T10:00:00Z",
                "gated": False,
            },
            response_only=True,
        )
    ]
)
class FoundSerializer(serializers.Serializer[Any]):
    """A repository with GGUF files."""

    name = serializers.CharField(help_text="owner/name")
    downloads = serializers.IntegerField()
    likes = serializers.IntegerField()
    changed_at = serializers.DateTimeField(allow_null=True)
    gated = serializers.BooleanField(help_text="Only for who accepted its terms on the hub.")


class AskedRepositorySerializer(serializers.Serializer[Any]):
    """Which repository to look into."""

    name = serializers.CharField(max_length=96, help_text="owner/name")
    revision = serializers.CharField(max_length=100, required=False, default="main")


class JudgedSerializer(serializers.Serializer[Any]):
    """How a model would suit a machine, as the portal launches models."""

    node = serializers.CharField(source="node.name")
    verdict = serializers.ChoiceField(choices=[one.value for one in Verdict], source="suitability.verdict")
    needed_bytes = serializers.IntegerField(source="suitability.needed_bytes")
    room_bytes = serializers.IntegerField()
    context_tokens = serializers.IntegerField(
        source="suitability.context_tokens", allow_null=True, help_text="Of each slot, for which this holds."
    )


class OfferSerializer(serializers.Serializer[Any]):
    """One model in one quantisation."""

    path = serializers.CharField(source="choice.path", help_text="By which it is downloaded.")
    label = serializers.CharField(  # type: ignore[assignment]  # a field of that name, not the field's own
        source="choice.label", help_text="The quantisation."
    )
    size_bytes = serializers.IntegerField(source="choice.size_bytes")
    parts = serializers.SerializerMethodField(help_text="Files.")
    problem = serializers.CharField(source="choice.problem", help_text="Why it can't be had.")
    suits = JudgedSerializer(source="judged", many=True)

    def get_parts(self, offer: Any) -> int:
        """How many."""
        return len(offer.choice.parts)


class ProjectorSerializer(serializers.Serializer[Any]):
    """A projector that goes with the repository's models."""

    path = serializers.CharField()
    label = serializers.CharField()  # type: ignore[assignment]  # as above
    size_bytes = serializers.IntegerField()


class RepositorySerializer(serializers.Serializer[Any]):
    """A repository at one commit."""

    name = serializers.CharField()
    commit = serializers.CharField()
    gated = serializers.BooleanField()
    models = OfferSerializer(many=True)
    projectors = ProjectorSerializer(many=True)
