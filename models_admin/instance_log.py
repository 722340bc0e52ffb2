"""What a replica's process writes: a file of bounded size on its node."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from llamaproj import env

_MAX_BYTES = 8 * 2**20
_TAIL_BYTES = 32 * 2**10
_TAIL_LINES = 200


def path_of(instance_id: str) -> Path:
    """The file of an instance on this node."""
    return _folder() / f"{instance_id}.log"


@contextmanager
def opened(instance_id: str, *, headline: str) -> Iterator[BinaryIO]:
    """The file, to be given to a new process; each start begins with a line that says how."""
    path = path_of(instance_id)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    # Appending, so that `trim` may cut the file under a process that goes on writing.
    with path.open("ab") as file:
        file.write(f"--- {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {headline}\n".encode())
        file.flush()
        yield file


def tail(instance_id: str, lines: int = _TAIL_LINES) -> list[str]:
    """The last lines; empty where there is no file."""
    try:
        with path_of(instance_id).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            data = file.read(_TAIL_BYTES)
    except OSError:
        return []
    found = data.decode("utf-8", errors="replace").replace("\0", "").splitlines()
    if size > _TAIL_BYTES:
        # The first one is cut off.
        found = found[1:]
    return found[-lines:]


def trim(instance_id: str) -> None:
    """Once the file is too large, keep it as `.1` and go on with an empty one."""
    path = path_of(instance_id)
    try:
        if path.stat().st_size <= _MAX_BYTES:
            return
        data = path.read_bytes()
        older = path.with_suffix(".log.1")
        older.touch(mode=0o600)
        older.write_bytes(data[-_MAX_BYTES:])
        with path.open("r+b") as file:
            file.truncate(0)
    except OSError:
        # A full disk: nothing is lost by trying again at the next pass.
        return


def remove(instance_id: str) -> None:
    """Forget the file of an instance that is deleted."""
    path = path_of(instance_id)
    path.unlink(missing_ok=True)
    path.with_suffix(".log.1").unlink(missing_ok=True)


def known() -> set[str]:
    """The ids of the instances that have a file here."""
    return {path.name.split(".", 1)[0] for path in _folder().glob("*.log*")}


def _folder() -> Path:
    return env.DATA_DIR / "logs" / "instances"
