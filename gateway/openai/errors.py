"""Errors as the OpenAI API spells them, and those of this door alone."""

from typing import Any

from llamaproj.errors import InvalidInput, LlamaProjError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class BodyTooLarge(InvalidInput):
    """The request body is larger than 16 MiB."""

    code = "body_too_large"
    status = 413


class MethodNotAllowed(LlamaProjError):
    """This URL doesn't know that method."""

    code = "method_not_allowed"
    status = 405


class ClientGone(Exception):
    """Whoever asked isn't there any more."""


def error_object(error: LlamaProjError) -> dict[str, Any]:
    """The error's JSON."""
    kind = _TYPES.get(error.status, "server_error")
    return {"error": {"message": error.message, "type": kind, "code": error.code, "param": error.param}}


def retry_headers(error: LlamaProjError) -> list[tuple[bytes, bytes]]:
    """When to try again, and how to sign in."""
    headers = [(b"www-authenticate", b"Bearer")] if error.status == 401 else []
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after))))
    return headers
