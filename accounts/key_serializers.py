"""API keys, as REST has them."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from accounts.key_rights import KeyRights
from accounts.models import ApiKey, Team
from llamaproj.rest import Strict


@extend_schema_field(OpenApiTypes.STR)
class _OwnTeam(serializers.SlugRelatedField[Team]):
    """A team that the person sees, by its name."""

    def get_queryset(self) -> QuerySet[Team]:
        """Others don't exist."""
        request = self.context.get("request")
        return Team.objects.visible_to(request.user) if request else Team.objects.none()


class KeySerializer(serializers.ModelSerializer[ApiKey]):
    """A key, as far as it can be shown."""

    user = serializers.SlugRelatedField[Any](slug_field="username", read_only=True)
    team = serializers.SlugRelatedField[Any](slug_field="name", read_only=True, allow_null=True)
    scopes = serializers.ListField(child=serializers.ChoiceField(ApiKey.Scope.choices))
    models = serializers.ListField(
        source="model_slugs", child=serializers.CharField(), help_text="None: every model of its owner."
    )

    class Meta:
        model = ApiKey
        fields: tuple[str, ...] = (
            "id", "name", "prefix", "user", "team", "scopes", "models", "priority", "created_at", "expires_at",
            "revoked_at", "last_used_at",
        )  # fmt: skip
        read_only_fields: tuple[str, ...] = fields


class CreatedKeySerializer(KeySerializer):
    """A new key, with the one look at it that there is."""

    key = serializers.CharField(read_only=True, help_text="The key itself. It can't be shown again.")

    class Meta(KeySerializer.Meta):
        fields = (*KeySerializer.Meta.fields, "key")
        read_only_fields = fields


class AskedKeySerializer(Strict):
    """What a new key is to be called, and what it may do."""

    name = serializers.CharField(max_length=80)
    team = _OwnTeam(
        slug_field="name",
        required=False,
        allow_null=True,
        help_text="One that you manage: the key uses what the team may use and ends with your membership.",
    )
    scopes = serializers.ListField(
        child=serializers.ChoiceField(ApiKey.Scope.choices),
        required=False,
        default=lambda: [ApiKey.Scope.INFERENCE.value],
        min_length=1,
        max_length=len(ApiKey.Scope),
        help_text="Only inference unless said.",
    )
    models = serializers.ListField(
        child=serializers.SlugField(max_length=100),
        required=False,
        default=list,
        max_length=200,
        help_text="None: every model of yours.",
    )
    priority = serializers.ChoiceField(
        ApiKey.Priority.choices, required=False, default=ApiKey.Priority.INTERACTIVE.value
    )
    expires_at = serializers.DateTimeField(required=False, allow_null=True, help_text="Null: never.")

    def rights(self) -> KeyRights:
        """What was asked for."""
        asked = self.validated_data
        return KeyRights(
            scopes=tuple(asked["scopes"]),
            model_slugs=tuple(asked["models"]),
            team=asked.get("team"),
            priority=asked["priority"],
            expires_at=asked.get("expires_at"),
        )


class RenamedKeySerializer(Strict):
    """A key's new name; nothing else of a key changes."""

    name = serializers.CharField(max_length=80, required=False)
