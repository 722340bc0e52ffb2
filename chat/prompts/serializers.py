"""Prompts, as REST has them."""

from typing import Any

from rest_framework import serializers

from accounts.models import Team
from chat.models import Prompt
from llamaproj.rest import Strict


class PromptSerializer(Strict, serializers.ModelSerializer[Prompt]):
    """A prompt."""

    owner = serializers.CharField(source="owner.username", read_only=True)
    team = serializers.PrimaryKeyRelatedField(
        queryset=Team.objects.none(),
        allow_null=True,
        required=False,
        help_text="Whose members see it; without one, its owner alone.",
    )

    class Meta:
        model = Prompt
        fields = ("id", "title", "text", "team", "owner", "created_at", "updated_at")
        read_only_fields = ("id", "created_at", "updated_at")

    def get_fields(self) -> dict[str, Any]:
        """Only teams one is in can be named."""
        fields = super().get_fields()
        request = self.context.get("request")
        if request is not None and request.user.is_authenticated:
            team: Any = fields["team"]
            team.queryset = request.user.teams.all()
        return fields
