"""Which llama-server this machine runs: LLAMA_SERVER_BIN, one on PATH, or the embedded one."""

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llamaproj import env
from models_admin.engine import embedded_engine, named_files, process
from models_admin.errors import EngineMissing

_HELP_TIMEOUT_S = 20
_FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*")
_NEEDED = frozenset({"--model", "--host", "--port", "--ctx-size", "--parallel"})


@dataclass(frozen=True)
class Engine:
    """How to start it, and which flags it knows."""

    command: tuple[str, ...]
    name: str
    flags: frozenset[str]

    def knows(self, flag: str) -> bool:
        """True where this build takes the flag; builds differ."""
        return flag in self.flags


def find(binary: str = "") -> Engine:
    """The engine of this machine: `binary` where one is named. Raises `EngineMissing` with the reason."""
    if binary:
        named_files.check_program(binary)
        return _outside(binary)
    if env.LLAMA_SERVER_BIN:
        path = shutil.which(env.LLAMA_SERVER_BIN)
        if path is None:
            raise EngineMissing(f"LLAMA_SERVER_BIN={env.LLAMA_SERVER_BIN} isn't a program that can be run.")
        return _outside(path)
    if path := shutil.which("llama-server"):
        return _outside(path)
    if importlib.util.find_spec("xllamacpp"):
        return _embedded()
    raise EngineMissing


def _outside(path: str) -> Engine:
    absolute = Path(path).absolute()
    status = absolute.stat()
    return Engine(
        (str(absolute),), absolute.name, _flags_of(str(absolute), status.st_mtime_ns, status.st_size)
    )


@lru_cache(maxsize=1)
def _embedded() -> Engine:
    command = (sys.executable, "-m", "models_admin.engine.embedded_engine")
    return Engine(command, "embedded", embedded_engine.flags())


@lru_cache(maxsize=8)
def _flags_of(path: str, mtime_ns: int, size: int) -> frozenset[str]:
    """Asked once for each build: the path, its time and its size name it."""
    flags = _asked(path)
    if missing := _NEEDED - flags:
        raise EngineMissing(f"{path} isn't a llama-server: its --help doesn't name {min(missing)}.")
    return flags


def _asked(path: str) -> frozenset[str]:
    try:
        done = subprocess.run(
            [path, "--help"],
            cwd=env.BASE_DIR,
            # Marked, so that stopping the portal ends it should the worker that asks be killed meanwhile.
            env=env.outside_environment() | process.mark_of_all(),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_HELP_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise EngineMissing(f"{path} can't be run: {error.strerror or error}.") from None
    except subprocess.TimeoutExpired:
        raise EngineMissing(f"{path} doesn't answer to --help.") from None
    return frozenset(_FLAG.findall((done.stdout + done.stderr).decode("utf-8", errors="replace")))
