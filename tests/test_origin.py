"""Sockets are for the portal's own pages."""

import pytest

from llamaproj.origin import may_connect


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("localhost:8000", "http://localhost:8000", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("localhost", "https://localhost", True),
        ("localhost:8000", "", True),
        ("localhost:8000", "http://localhost:9000", False),
        ("localhost:8000", "http://evil.example", False),
        ("evil.example", "http://evil.example", False),
        ("localhost:8000", "null", False),
        ("localhost:8000", "http://[", False),
        ("localhost:8000", "http://localhost:8000/x", False),
        ("localhost:8000", "https://trusted.example", True),
        ("localhost:8000", "https://trusted.example:444", False),
    ],
)
def test_only_the_same_host_and_port_or_a_trusted_origin_may_connect(settings, host, origin, allowed):
    settings.ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
    settings.CSRF_TRUSTED_ORIGINS = ["https://trusted.example"]
    headers = {b"host": host.encode()} | ({b"origin": origin.encode()} if origin else {})

    assert may_connect(headers) is allowed
