"""Headers of requests and answers: what Django's middleware does for pages, done for this door.

Hosts, CORS and the headers that tell browsers to be careful.
"""

import re
import secrets
from functools import lru_cache

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from gateway.upstream import HOPS_HEADER
from llamaproj.errors import InvalidInput

Headers = list[tuple[bytes, bytes]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOCAL_HOSTS = (".localhost", "127.0.0.1", "[::1]")
_SHOWN = (
    b"x-request-id, x-llamaproj-instance, x-llamaproj-queue-ms, retry-after, x-ratelimit-limit-requests, \
x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, \
x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_CAREFUL: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


class BadHost(InvalidInput):
    """This portal isn't known by that host name. An administrator can add it to ALLOWED_HOSTS."""

    code = "bad_host"


def check_host(host: str) -> None:
    """Raise `BadHost` for a name that isn't the portal's."""
    allowed = settings.ALLOWED_HOSTS or (_LOCAL_HOSTS if settings.DEBUG else ())
    if not _is_allowed(host, tuple(allowed)):
        raise BadHost


@lru_cache(maxsize=256)
def _is_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    domain, _ = split_domain_port(host)
    return bool(domain) and validate_host(domain, allowed)


def request_id(said: str) -> str:
    """The client's own id of its request, where it is one; otherwise a new one."""
    return said if _REQUEST_ID.fullmatch(said) else secrets.token_hex(16)


def hops(said: str) -> int:
    """How many portals the request has passed through."""
    return int(said) if said.isascii() and said.isdigit() and len(said) < 4 else 0


HOPS = HOPS_HEADER.encode()


def is_secure(scheme: str, forwarded: str) -> bool:
    """Whether the client's own connection is encrypted."""
    if settings.SECURE_PROXY_SSL_HEADER and forwarded:
        return forwarded.partition(",")[0].strip() == settings.SECURE_PROXY_SSL_HEADER[1]
    return scheme == "https"


def careful(*, secure: bool) -> Headers:
    """What every answer says to browsers."""
    if secure and settings.SECURE_HSTS_SECONDS:
        lasting = b"max-age=%d; includeSubDomains; preload" % settings.SECURE_HSTS_SECONDS
        return [*_CAREFUL, (b"strict-transport-security", lasting)]
    return _CAREFUL


def cross_origin(origin: str) -> Headers:
    """What lets pages of that origin read the answer: nothing unless CORS_ALLOWED_ORIGINS has it.

    Keys travel in a header of their own, so no credentials of the browser's are ever asked for.
    """
    if not settings.CORS_ALLOWED_ORIGINS:
        return []
    vary = (b"vary", b"origin")
    if origin not in settings.CORS_ALLOWED_ORIGINS:
        return [vary]
    return [
        vary,
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _SHOWN),
    ]


def preflight(origin: str, methods: str) -> Headers:
    """The answer to a browser that asks what a page may send."""
    allowed = cross_origin(origin)
    if len(allowed) < 2:
        return allowed
    return [
        *allowed,
        (b"access-control-allow-methods", methods.encode()),
        (b"access-control-allow-headers", b"authorization, content-type, x-request-id, *"),
        (b"access-control-max-age", b"86400"),
    ]
