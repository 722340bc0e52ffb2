"""People, as REST has them. A password is written, never read."""

from typing import Any

from django.contrib.auth.validators import UnicodeUsernameValidator
from drf_spectacular.utils import OpenApiExample, extend_schema_serializer
from rest_framework import serializers

from accounts.models import Membership, User
from llamaproj.rest import Strict


class PersonsTeamSerializer(serializers.ModelSerializer[Membership]):
    """A team somebody is in."""

    team = serializers.CharField(source="team.name", read_only=True)

    class Meta:
        model = Membership
        fields = ("team", "role")
        read_only_fields = fields


@extend_schema_serializer(
    examples=[OpenApiExample("A name", {"first_name": "Ada", "last_name": "Lovelace"}, request_only=True)]
)
class MeSerializer(Strict, serializers.ModelSerializer[User]):
    """Oneself. Name and address to sign in with are an administrator's to change."""

    teams = PersonsTeamSerializer(source="memberships", many=True, read_only=True)

    class Meta:
        model = User
        fields = (
            "id",
            "username",
            "first_name",
            "last_name",
            "email",
            "is_staff",
            "teams",
            "date_joined",
            "last_login",
        )
        read_only_fields = ("id", "username", "email", "is_staff", "date_joined", "last_login")


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "Somebody new",
            {"username": "ada", "email": "ada@example.org", "password": "a long and secret phrase"},
            request_only=True,
        )
    ]
)
class PersonSerializer(Strict, serializers.ModelSerializer[User]):
    """A person, for administrators."""

    teams = PersonsTeamSerializer(source="memberships", many=True, read_only=True)
    password = serializers.CharField(
        write_only=True,
        required=False,
        max_length=128,
        trim_whitespace=False,
        help_text="A new one ends the person's sessions.",
    )

    class Meta:
        model = User
        fields = (
            "id",
            "username",
            "first_name",
            "last_name",
            "email",
            "is_active",
            "is_staff",
            "password",
            "teams",
            "date_joined",
            "last_login",
        )
        read_only_fields = ("id", "date_joined", "last_login")
        # A name that is taken is a conflict, and `actions` says so.
        extra_kwargs: dict[str, dict[str, Any]] = {"username": {"validators": [UnicodeUsernameValidator()]}}
