"""Prompts, as REST has them."""

from rest_framework import serializers

from accounts.models import Team
from chat.models import Prompt
from chat.serializers import OwnTeamField
from llamaproj.rest import Strict


class PromptSerializer(Strict, serializers.ModelSerializer[Prompt]):
    """A prompt."""

    owner = serializers.CharField(source="owner.username", read_only=True)
    team = OwnTeamField(
        queryset=Team.objects.none(),
        allow_null=True,
        required=False,
        help_text="Whose members see it; without one, its owner alone.",
    )

    class Meta:
        model = Prompt
        fields = ("id", "title", "text", "team", "owner", "created_at", "updated_at")
        read_only_fields = ("id", "created_at", "updated_at")
