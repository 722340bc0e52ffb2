"""What the schema says of every REST operation."""

from typing import Any, Literal

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import inline_serializer
from rest_framework import serializers

from llamaproj.rest import PROBLEM_TYPE

PROBLEM = inline_serializer(
    "Problem",
    {
        "type": serializers.CharField(help_text="Always about:blank: `code` says more."),
        "title": serializers.CharField(help_text="The status in words."),
        "status": serializers.IntegerField(),
        "detail": serializers.CharField(help_text="One sentence for a person."),
        "code": serializers.CharField(help_text="One word for a program."),
        "param": serializers.CharField(allow_null=True, help_text="The parameter that is wrong."),
        "errors": serializers.DictField(
            child=serializers.CharField(),
            required=False,
            help_text="Every wrong parameter with its sentence.",
        ),
        "request_id": serializers.CharField(help_text="Under which the logs know the request."),
    },
)


class Schema(AutoSchema):
    """Every operation may answer with a problem; an address that isn't known is empty."""

    def _insert_field_validators(self, field: Any, schema: dict[str, Any]) -> None:
        super()._insert_field_validators(field, schema)  # type: ignore[no-untyped-call]
        if field.read_only and schema.get("format") == "email":
            del schema["format"]

    def _get_response_bodies(self, direction: Literal["request", "response"] = "response") -> dict[str, Any]:
        bodies: dict[str, Any] = super()._get_response_bodies(direction)
        problem = self.resolve_serializer(PROBLEM, "response")
        content = {PROBLEM_TYPE: {"schema": problem.ref}}
        return bodies | {"default": {"description": "What went wrong.", "content": content}}


class TokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # drf-spectacular's own
    """How the schema calls `accounts.authentication.TokenAuthentication`."""

    target_class = "accounts.authentication.TokenAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, str]:
        """A bearer token."""
        description = "A token of /api/v1/auth/token/."
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": description}


class ApiKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # drf-spectacular's own
    """How the schema calls `accounts.authentication.ApiKeyAuthentication`."""

    target_class = "accounts.authentication.ApiKeyAuthentication"
    name = "apiKey"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, str]:
        """A bearer token."""
        return {"type": "http", "scheme": "bearer", "description": "An API key: sk-…"}
