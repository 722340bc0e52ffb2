"""What every REST resource shares: errors as problem bodies (RFC 9457), and strict bodies of requests."""

from http import HTTPStatus
from typing import Any

import orjson
import redis.exceptions
import structlog
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import DataError, IntegrityError, InterfaceError, OperationalError
from django.http import Http404
from rest_framework import exceptions, serializers
from rest_framework.parsers import JSONParser
from rest_framework.response import Response

from llamaproj.errors import (
    Conflict,
    InvalidInput,
    LlamaProjError,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    NotStorable,
    Unavailable,
)

log = structlog.get_logger(__name__)

PROBLEM_TYPE = "application/problem+json"
# What is raised while the database or Valkey is away.
AWAY = (OperationalError, InterfaceError, redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
RETRY_AFTER_S = 2
_TEXTS = (
    serializers.CharField,
    serializers.ChoiceField,
    serializers.DateTimeField,
    serializers.SlugRelatedField,
    serializers.UUIDField,
)
# What Django REST framework raises, by its status.
_CODES = {
    error.status: error.code for error in (InvalidInput, NotAuthenticated, NotAllowed, NotFound, Conflict)
}


class Body(JSONParser):
    """JSON, read by the parser that the other API has: neither depth nor strange numbers break it."""

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        """Raises `ParseError`."""
        try:
            return orjson.loads(stream.read())
        except orjson.JSONDecodeError as error:
            raise exceptions.ParseError(f"The body isn't valid JSON: {error}.") from None


class Strict(serializers.Serializer[Any]):
    """Takes what the schema says and nothing else.

    A misspelt parameter would otherwise be lost without a word, and a text in the place of a number be guessed at.
    """

    def to_internal_value(self, data: Any) -> Any:
        """Raises `ValidationError` for unknown names and wrong types."""
        if isinstance(data, dict):
            unknown = [str(name)[:60] for name in data if name not in self.fields]
            wrong = {name: ["There is no parameter of this name."] for name in unknown}
            for name, field in self.fields.items():
                if not field.read_only and (sentence := _mistyped(field, data.get(name))):
                    wrong[name] = [sentence]
            if wrong:
                raise serializers.ValidationError(wrong)
        return super().to_internal_value(data)


def valid(serializer: serializers.BaseSerializer[Any]) -> dict[str, Any]:
    """What a body or a query says. Raises `ValidationError`."""
    serializer.is_valid(raise_exception=True)
    said: dict[str, Any] = serializer.validated_data
    return said


def _mistyped(field: serializers.Field[Any, Any, Any, Any], value: Any) -> str:
    """What is wrong with the JSON type of a value; empty where nothing is, or the field itself will say so."""
    if value is None:
        return ""
    if isinstance(field, serializers.ListField) and isinstance(value, list) and field.child is not None:
        return next((sentence for one in value if (sentence := _mistyped(field.child, one))), "")
    if isinstance(field, serializers.ManyRelatedField) and isinstance(value, list):
        return next((sentence for one in value if (sentence := _mistyped(field.child_relation, one))), "")
    if isinstance(field, serializers.BooleanField):
        return "" if isinstance(value, bool) else "This is true or false."
    if isinstance(field, serializers.IntegerField | serializers.PrimaryKeyRelatedField):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return "" if whole and not isinstance(value, bool) else "This is a whole number."
    if isinstance(field, serializers.FloatField):
        return "" if isinstance(value, int | float) and not isinstance(value, bool) else "This is a number."
    if isinstance(field, _TEXTS):
        return "" if isinstance(value, str) else "This is a text."
    return ""


def answer(error: Exception, context: dict[str, Any]) -> Response:
    """The REST door's one translation of errors. What nobody foresaw is logged whole and told in a neutral sentence."""
    known = _known(error)
    if known is None:
        log.error("request failed", path=context["request"].path, exc_info=error)
        known = LlamaProjError(f"Something went wrong here; the logs know it as {_request_id()}.")
    body = problem(known)
    if isinstance(error, exceptions.ValidationError):
        body["errors"] = dict(_sentences(error.detail))
    response = Response(body, status=known.status, content_type=PROBLEM_TYPE)
    if known.status == HTTPStatus.UNAUTHORIZED:
        response["www-authenticate"] = "Bearer"
    if known.retry_after is not None:
        response["retry-after"] = str(max(1, round(known.retry_after)))
    return response


def problem(error: LlamaProjError) -> dict[str, Any]:
    """An error as a problem body."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "param": error.param,
        "request_id": _request_id(),
    }


def _request_id() -> str:
    return str(structlog.contextvars.get_contextvars().get("request_id", "unknown"))


def _known(error: Exception) -> LlamaProjError | None:
    if isinstance(error, LlamaProjError):
        return error
    if isinstance(error, Http404):
        return NotFound()
    if isinstance(error, PermissionDenied | exceptions.PermissionDenied):
        return NotAllowed(str(getattr(error, "detail", "")))
    if isinstance(error, IntegrityError):
        return Conflict("Somebody else was faster: look at what is there now.")
    if isinstance(error, AWAY):
        log.warning("what the portal stands on is away", error=str(error))
        return Unavailable(retry_after=RETRY_AFTER_S)
    if isinstance(error, DataError):
        log.warning("a value can't be stored", error=str(error))
        return NotStorable()
    if isinstance(error, exceptions.ValidationError):
        param, sentence = next(iter(_sentences(error.detail)), ("", "This can't be right."))
        return InvalidInput(sentence, param=param or None)
    if isinstance(error, ValidationError):
        sentences = error.message_dict if hasattr(error, "error_dict") else {"": error.messages}
        param, said = next(iter(sentences.items()))
        return InvalidInput(said[0], param=param or None)
    if isinstance(error, exceptions.APIException):
        known = LlamaProjError(str(error.detail))
        known.status = error.status_code
        known.code = _CODES.get(error.status_code, str(error.default_code))
        return known
    return None


def _sentences(detail: Any, param: str = "") -> list[tuple[str, str]]:
    """Each wrong parameter with its first sentence; of nested ones the whole path."""
    if isinstance(detail, dict):
        return [
            pair
            for name, inner in detail.items()
            for pair in _sentences(
                inner, param if name == "non_field_errors" else f"{param}.{name}".strip(".")
            )
        ]
    if isinstance(detail, list):
        return _sentences(detail[0], param) if detail else []
    return [(param, str(detail))]
