"""What a replica's process writes: a file of bounded size on its node."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from llamaproj import env

_MAX_BYTES = 8 * 2**20
_TAIL_BYTES = 128 * 2**10
TAIL_LINES = 1000
_PIECE_BYTES = 2**16
# Newer builds write the time since the start and the level's first letter before each line.
_LEVEL = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} ([EW]) |^(error|warning)\b", re.IGNORECASE)


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


def tail(instance_id: str, lines: int = TAIL_LINES) -> list[str]:
    """The last lines; empty where there is no file."""
    path = path_of(instance_id)
    data, cut = _end_of(path, _TAIL_BYTES)
    if not cut and len(data) < _TAIL_BYTES:
        # It was begun anew not long ago.
        older, cut = _end_of(_older(path), _TAIL_BYTES - len(data))
        data = older + data
    found = data.decode("utf-8", errors="replace").replace("\0", "").splitlines()
    return (found[1:] if cut else found)[-lines:]


def whole(instance_id: str) -> Iterator[bytes]:
    """Everything that is kept, in pieces."""
    path = path_of(instance_id)
    for one in (_older(path), path):
        try:
            with one.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    yield piece
        except OSError:
            continue


def level_of(line: str) -> str:
    """`error`, `warning`, or nothing for what is neither."""
    found = _LEVEL.match(line)
    if found is None:
        return ""
    return "error" if (found[1] or found[2]).lower().startswith("e") else "warning"


def trim(instance_id: str) -> None:
    """Once the file is too large, keep it as `.1` and go on with an empty one."""
    path = path_of(instance_id)
    try:
        if path.stat().st_size <= _MAX_BYTES:
            return
        data = path.read_bytes()
        older = _older(path)
        older.touch(mode=0o600)
        # From the first whole line on.
        older.write_bytes(data[-_MAX_BYTES:].partition(b"\n")[2])
        with path.open("r+b") as file:
            file.truncate(0)
    except OSError:
        # A full disk: nothing is lost by trying again at the next pass.
        return


def remove(instance_id: str) -> None:
    """Forget the file of an instance that is deleted."""
    path = path_of(instance_id)
    path.unlink(missing_ok=True)
    _older(path).unlink(missing_ok=True)


def known() -> set[str]:
    """The ids of the instances that have a file here."""
    return {path.name.split(".", 1)[0] for path in _folder().glob("*.log*")}


def _end_of(path: Path, limit: int) -> tuple[bytes, bool]:
    """The end of a file, and whether something stands before it."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit))
            return file.read(limit), size > limit
    except OSError:
        return b"", False


def _older(path: Path) -> Path:
    return path.with_suffix(".log.1")


def _folder() -> Path:
    return env.DATA_DIR / "logs" / "instances"
