"""The environment of this process: the only reader of `os.environ`.

Every variable is listed in `.env.example` (a test compares the two). A `.env` file in the working folder is
read first; the real environment wins over it. A wrong value raises `EnvironmentValueError` with a sentence.
"""

import hashlib
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import platformdirs
from dotenv import load_dotenv

BASE_DIR = Path(__file__).resolve().parent.parent
IN_CHECKOUT = (BASE_DIR / "manage.py").exists()

load_dotenv(BASE_DIR / ".env" if IN_CHECKOUT else Path.cwd() / ".env")

T = TypeVar("T")

# sun_path of a unix socket holds 108 bytes; Postgres appends "/.s.PGSQL.5432.lock" to the folder.
_SOCKET_DIR_MAX = 80


class EnvironmentValueError(ValueError):
    """A variable of the environment has a value that can't be used."""


def _read(name: str, default: T, parse: Callable[[str], T]) -> T:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        return parse(text)
    except ValueError as error:
        raise EnvironmentValueError(f"{name}={text!r} can't be used: {error}") from None


def _flag(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("use 1 or 0")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    return int(text)


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"use one of {', '.join(choices)}")
        return text

    return parse


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("an address begins with http:// or https://")
    return text.rstrip("/")


def _origins(text: str) -> list[str]:
    origins = [_address(name) for name in _names(text)]
    if any(urlsplit(origin).path for origin in origins):
        raise ValueError("an origin is a scheme, a host and a port, such as https://app.example.org")
    return origins


def _folder(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _folders(text: str) -> list[Path]:
    return [_folder(part) for part in text.split(os.pathsep) if part]


def _programs(text: str) -> list[str]:
    paths = [part for part in text.split(os.pathsep) if part]
    if not all(part.startswith("/") for part in paths):
        raise ValueError("use absolute paths")
    return paths


HOST = _read("HOST", "127.0.0.1", str)
PORT = _read("PORT", 8000, _port)
DATA_DIR = _read(
    "DATA_DIR", BASE_DIR / ".data" if IN_CHECKOUT else platformdirs.user_data_path("llamaproj"), _folder
)
MODELS_DIRS = _read("MODELS_DIR", [DATA_DIR / "models"], _folders)
LLAMA_SERVER_BIN = _read("LLAMA_SERVER_BIN", "", str)
LLAMA_SERVER_BINS: list[str] = _read("LLAMA_SERVER_BINS", [], _programs)
ASGI_SERVER = _read("ASGI_SERVER", "uvicorn", _choice("uvicorn", "daphne", "granian"))
NODE_NAME = _read("NODE_NAME", socket.gethostname(), str)
NODE_ADDRESS = _read("NODE_ADDRESS", "", str)
NODE_PUBLIC = _read("NODE_PUBLIC", False, _flag)
NODE_LABELS: list[str] = _read("NODE_LABELS", [], _names)
ADMIN_USERNAME = _read("ADMIN_USERNAME", "admin", str)
ADMIN_PASSWORD = _read("ADMIN_PASSWORD", "", str)
DEMO_MODEL = _read("DEMO_MODEL", True, _flag)
ALLOWED_HOSTS = _read("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"], _names)
CSRF_TRUSTED_ORIGINS: list[str] = _read("CSRF_TRUSTED_ORIGINS", [], _names)
CORS_ALLOWED_ORIGINS: list[str] = _read("CORS_ALLOWED_ORIGINS", [], _origins)
DEBUG = _read("DEBUG", False, _flag)
SECURE = _read("SECURE", False, _flag)
HF_ENDPOINT = _read("HF_ENDPOINT", "https://huggingface.co", _address)
HF_TOKEN = _read("HF_TOKEN", "", str)
REQUIRE_MFA = _read("REQUIRE_MFA", False, _flag)
OIDC_SERVER_URL = _read("OIDC_SERVER_URL", "", _address)
OIDC_CLIENT_ID = _read("OIDC_CLIENT_ID", "", str)
OIDC_CLIENT_SECRET = _read("OIDC_CLIENT_SECRET", "", str)
OIDC_NAME = _read("OIDC_NAME", "Single sign-on", str)
OIDC_SIGNUP = _read("OIDC_SIGNUP", "closed", _choice("closed", "open"))
OIDC_TEAM = _read("OIDC_TEAM", "", str)
METRICS_TOKEN = _read("METRICS_TOKEN", "", str)
LOG_LEVEL = _read("LOG_LEVEL", "info", _choice("debug", "info", "warning", "error")).upper()
LOG_FORMAT = _read("LOG_FORMAT", "", _choice("console", "json"))


def socket_dir(data_dir: Path = DATA_DIR) -> Path:
    """Where the embedded services put their unix sockets; short enough for `sun_path`."""
    folder = data_dir / "run"
    if len(str(folder)) <= _SOCKET_DIR_MAX:
        return folder
    digest = hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"llamaproj-{os.getuid()}-{digest}"


def outside_database() -> bool:
    """True when DATABASE_URL names a PostgreSQL that isn't ours to start."""
    return bool(os.environ.get("DATABASE_URL", "").strip())


def outside_redis() -> bool:
    """True when REDIS_URL names a Redis that isn't ours to start."""
    return bool(os.environ.get("REDIS_URL", "").strip())


def database_url() -> str:
    """DATABASE_URL, or the address of the embedded PostgreSQL of DATA_DIR."""
    return _read("DATABASE_URL", f"postgresql://postgres@/llamaproj?host={socket_dir()}", str)


def redis_url() -> str:
    """REDIS_URL, or the address of the embedded Valkey of DATA_DIR."""
    return _read("REDIS_URL", f"unix://{socket_dir()}/valkey.sock?db=0", str)


def secret_key() -> str:
    """SECRET_KEY, or one generated once and kept in DATA_DIR, readable by its owner only."""
    return os.environ.get("SECRET_KEY", "").strip() or _kept("secret_key", secrets.token_urlsafe(48))


def has_secret_key() -> bool:
    """True where SECRET_KEY is given or was generated before."""
    return bool(os.environ.get("SECRET_KEY", "").strip()) or (DATA_DIR / "secret_key").exists()


def machine_id() -> str:
    """What tells this DATA_DIR from every other one: generated once and kept in it."""
    return _kept("machine_id", secrets.token_hex(16))


def _kept(name: str, fresh: str) -> str:
    """The text of the file `name` in DATA_DIR; it is written with `fresh` unless it exists."""
    path = DATA_DIR / name
    if not path.exists():
        DATA_DIR.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        draft.touch(mode=0o600)
        draft.write_text(fresh)
        try:
            # A hard link fails if another process was first; both then read the same text.
            path.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()


def outside_environment() -> dict[str, str]:
    """The environment for programs that aren't ours: neither our secrets nor what would change llama-server's flags."""
    secret = {
        "SECRET_KEY",
        "DATABASE_URL",
        "REDIS_URL",
        "ADMIN_PASSWORD",
        "METRICS_TOKEN",
        "LLAMA_API_KEY",
        "HF_TOKEN",
        "OIDC_CLIENT_SECRET",
    }
    return {
        name: value
        for name, value in os.environ.items()
        if name not in secret and not name.startswith("LLAMA_ARG_")
    }
