"""Addresses of external servers: what people type, and where OpenAI's paths begin. Knows no Django."""

import contextlib
import re
import socket
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from llamaproj.errors import InvalidInput

MAX_LENGTH = 500
# People copy what their programs call.
_ENDPOINTS = ("/chat/completions", "/completions", "/embeddings", "/models")
_KEY = re.compile(r"[\x21-\x7e]{1,500}")


def cleaned(typed: str) -> str:
    """The address without what doesn't belong to it. Raises `InvalidInput`.

    Names aren't resolved here: only administrators add servers, and what a server says is shown only as names of models
    and as the first words of its errors. Link-local addresses are refused all the same: clouds keep their machines'
    secrets there.
    """
    typed = typed.strip()
    if len(typed) > MAX_LENGTH:
        raise InvalidInput(f"An address has at most {MAX_LENGTH} characters.", param="base_url")
    parts = _split(typed)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidInput("An address begins with http:// or https:// and a host.", param="base_url")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("Type the key in its own field, not into the address.", param="base_url")
    if parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\x7f\\]", typed):
        raise InvalidInput("An address has no spaces, no ? and no #.", param="base_url")
    if _is_nobodys(parts.hostname):
        raise InvalidInput("No model is served at such an address.", param="base_url")
    path = parts.path.rstrip("/")
    for endpoint in _ENDPOINTS:
        path = path.removesuffix(endpoint)
    return f"{parts.scheme}://{parts.netloc.lower()}{path.rstrip('/')}"


def candidates(base_url: str) -> list[str]:
    """Where the models may be listed, most likely first: whoever typed no /v1 may have meant one."""
    if base_url.endswith("/v1"):
        return [base_url]
    return [f"{base_url}/v1", f"{base_url}/engines/v1", base_url]


def origin(base_url: str) -> str:
    """Scheme, host and port: who gets the key."""
    parts = _split(base_url)
    return f"{parts.scheme}://{parts.netloc}"


def check_key(key: str) -> None:
    """Raise `InvalidInput` for what can't stand in a header."""
    if key and not _KEY.fullmatch(key):
        raise InvalidInput(
            "A key has up to 500 letters, digits and signs, without spaces or line breaks.", param="api_key"
        )


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        # Reading it is what checks it.
        port = parts.port
    except ValueError:
        raise InvalidInput("This is no address.", param="base_url") from None
    if port == 0:
        raise InvalidInput("Nothing listens on port 0.", param="base_url")
    return parts


def _is_nobodys(host: str) -> bool:
    with contextlib.suppress(OSError):
        # Resolvers take 2852039166 and 0xa9fea9fe for addresses, too.
        host = socket.inet_ntoa(socket.inet_aton(host))
    try:
        address = ip_address(host.split("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified)
