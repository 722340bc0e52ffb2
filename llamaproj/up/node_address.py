"""Where this machine's llama-servers listen: an address of its own that the portal reaches and outsiders don't."""

import ipaddress
import socket

from psycopg.conninfo import conninfo_to_dict

from llamaproj import env
from llamaproj.up.errors import StartError


def check() -> None:
    """Refuse a NODE_ADDRESS that isn't one of this machine's private addresses. Raises `StartError`."""
    if env.NODE_ADDRESS:
        _check(env.NODE_ADDRESS)


def find() -> str:
    """NODE_ADDRESS, or the address from which this machine reaches the database. Raises `StartError`."""
    address = env.NODE_ADDRESS or _towards_database()
    _check(address)
    return address


def _towards_database() -> str:
    options = conninfo_to_dict(env.database_url())
    host = str(options.get("host") or options.get("hostaddr") or "").split(",")[0]
    if not host or host.startswith("/"):
        # A unix socket: the portal is on this machine.
        return "127.0.0.1"
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, 5432, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # Sends nothing: it only asks which way packets would go.
            probe.connect(target)
            found = str(probe.getsockname()[0])
    except OSError as error:
        raise StartError(
            f"The way to the database at {host} can't be found ({error}); set NODE_ADDRESS."
        ) from None
    if ipaddress.ip_address(found).is_loopback:
        raise StartError(
            f"The database is reached at {host}, which tells nothing about where the portal reaches this machine:"
            " set NODE_ADDRESS."
        )
    return found


def _check(address: str) -> None:
    try:
        entries = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except OSError:
        raise StartError(f"NODE_ADDRESS={address} is neither an address nor a known name.") from None
    for family, kind, protocol, _, place in entries:
        found = ipaddress.ip_address(str(place[0]).partition("%")[0])
        if found.is_unspecified:
            raise StartError(
                f"NODE_ADDRESS={address} means every network of this machine; give the one address where the portal"
                " reaches it."
            )
        if found.is_global and not env.NODE_PUBLIC:
            raise StartError(
                f"NODE_ADDRESS={address} is a public address, where anybody could reach the llama-servers; give a"
                " private one, or set NODE_PUBLIC=1 if a firewall lets only the portal in."
            )
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(place)
            except OSError:
                raise StartError(f"NODE_ADDRESS={address} is not an address of this machine.") from None
