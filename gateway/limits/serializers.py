"""Limits, as REST has them."""

from typing import Any, ClassVar

from django.db.models import QuerySet
from rest_framework import serializers

from accounts.models import ApiKey, Team, User
from gateway.limits.actions import NUMBERS
from gateway.limits.subjects import FIELDS, Subject
from gateway.models import Limit
from llamaproj.rest import Strict
from models_admin.models import ServedModel

_MOST = 2**31 - 1


def _number(help_text: str = "") -> serializers.IntegerField:
    return serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=0,
        max_value=_MOST,
        help_text=help_text or "Null: no limit.",
    )


class NumbersSerializer(Strict):
    """What is allowed."""

    requests_per_minute = _number()
    prompt_tokens_per_minute = _number()
    completion_tokens_per_minute = _number()
    prompt_tokens_per_day = _number()
    completion_tokens_per_day = _number()
    concurrent_requests = _number()
    context_tokens = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=1,
        max_value=_MOST,
        help_text="The longest prompt and answer of one request together.",
    )


class LimitSerializer(NumbersSerializer, serializers.ModelSerializer[Limit]):
    """A limit and its one subject; without one it is for each person who has no limit of their own."""

    user = serializers.SlugRelatedField[User](
        slug_field="username", queryset=User.objects.all(), required=False, allow_null=True
    )
    team = serializers.SlugRelatedField[Team](
        slug_field="name", queryset=Team.objects.all(), required=False, allow_null=True
    )
    key = serializers.PrimaryKeyRelatedField[ApiKey](
        source="api_key", queryset=ApiKey.objects.all(), required=False, allow_null=True
    )
    model = serializers.SlugRelatedField[ServedModel](
        source="served",
        slug_field="slug",
        queryset=ServedModel.objects.all(),
        required=False,
        allow_null=True,
    )

    class Meta:
        model = Limit
        fields = ("id", "user", "team", "key", "model", *NUMBERS, "changed_at")
        read_only_fields = ("changed_at",)
        validators: ClassVar[list[Any]] = []

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """One subject at most. Raises `ValidationError`."""
        chosen = [field for field in FIELDS.values() if attrs.get(field) is not None]
        if len(chosen) > 1:
            name = next(kind for kind, field in FIELDS.items() if field == chosen[1])
            raise serializers.ValidationError({name: ["A limit is for one person, team, key or model."]})
        return attrs

    def subject(self) -> Subject:
        """Whom it is for."""
        asked = self.validated_data
        found: Subject = next((asked[field] for field in FIELDS.values() if asked.get(field)), None)
        return found

    def numbers(self) -> dict[str, int | None]:
        """What is allowed, as far as it was said."""
        return {name: value for name, value in self.validated_data.items() if name in NUMBERS}


class AmountSerializer(serializers.Serializer[Any]):
    """One number of a limit."""

    name = serializers.ChoiceField(choices=NUMBERS)
    limit = serializers.IntegerField()
    used = serializers.IntegerField(
        allow_null=True, help_text="Null: not counted, or not known at the moment."
    )


class OwnLimitSerializer(serializers.Serializer[Any]):
    """A limit that binds whoever asks, with what is used of it."""

    kind = serializers.ChoiceField(choices=["self", "team", "key"])
    name = serializers.CharField(help_text="Of the person, the team or the key.")
    amounts = AmountSerializer(many=True)


def all_limits() -> QuerySet[Limit]:
    """In a lasting order."""
    return Limit.objects.select_related("user", "team", "api_key", "served").order_by("pk")
