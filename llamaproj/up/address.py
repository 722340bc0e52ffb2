"""How this machine reaches its own portal."""

from llamaproj import env


def host_in_url(host: str) -> str:
    """The host as a URL spells it."""
    return f"[{host}]" if ":" in host else host


def base_url() -> str:
    """Where the portal answers here: an address that means "all" is reached through loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(env.HOST, env.HOST)
    return f"http://{host_in_url(host)}:{env.PORT}"


def known_name() -> str:
    """A host name that the portal answers to."""
    return next((name for name in env.ALLOWED_HOSTS if name.strip(".*")), "localhost").lstrip(".")
