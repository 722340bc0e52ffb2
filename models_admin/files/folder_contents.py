"""What lies in the model folders: a look at names and times, no file is opened. Cheap enough for every few seconds."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import structlog

from models_admin.files.gguf_info import MAX_PARTS, PART, part_name

_SUFFIXES = (".gguf", ".bin")
# A folder such as / given by mistake must not keep a worker busy.
_MAX_ENTRIES = 300_000
_MAX_FILES = 20_000
_MAX_PATH = 1024
# The end of the year 2999.
_LAST_MICROSECOND = 32_503_679_999 * 10**6

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Found:
    """A model's file or files. `path` is the first part's, whether that is there or not."""

    path: Path
    parts: int
    # The first that isn't there, in words; empty when all are.
    lacks: str
    size_bytes: int
    modified_at: datetime
    # Differs whenever one of the files was written, replaced or given other rights.
    seen: str


@dataclass(frozen=True)
class _File:
    folder: str
    name: str
    size: int
    modified_ns: int
    changed_ns: int


def find(folders: Iterable[Path]) -> dict[str, Found]:
    """The models in these folders and those below, by path. Hidden ones and what isn't a regular file are left out.

    Links to files are followed, links to folders are not: they may go in circles.
    """
    whole: list[_File] = []
    parts: dict[tuple[str, str, str], dict[int, tuple[re.Match[str], _File]]] = {}
    for file in _files(folders):
        match = PART.search(file.name)
        if match and 1 <= int(match[1]) <= int(match[2]) <= MAX_PARTS:
            group = (file.folder, file.name[: match.start()], match[2])
            parts.setdefault(group, {})[int(match[1])] = (match, file)
        else:
            whole.append(file)
    found = [_found(file.folder, file.name, [file], 1, "") for file in whole]
    for (folder, _, count), members in parts.items():
        match = next(iter(members.values()))[0]
        absent = [number for number in range(1, int(count) + 1) if number not in members]
        lacks = ""
        if absent:
            lacks = f"Part {absent[0]} of {int(count)} is missing: {part_name(match, absent[0])}"
            lacks += f" (and {len(absent) - 1} more)." if len(absent) > 1 else "."
        files = [members[number][1] for number in sorted(members)]
        found.append(_found(folder, part_name(match, 1), files, int(count), lacks))
    return {str(one.path): one for one in found}


def fingerprint(found: dict[str, Found]) -> str:
    """One word for the state of all folders: another whenever a scan would find something else."""
    digest = blake2b(digest_size=16)
    for path in sorted(found):
        digest.update(f"{path}\0{found[path].seen}\0".encode())
    return digest.hexdigest()


def _found(folder: str, name: str, files: list[_File], parts: int, lacks: str) -> Found:
    text = ";".join(f"{file.name}:{file.size}:{file.modified_ns}:{file.changed_ns}" for file in files)
    return Found(
        path=Path(folder, name),
        parts=parts,
        lacks=lacks,
        size_bytes=sum(file.size for file in files),
        modified_at=_moment(max(file.modified_ns for file in files)),
        seen=blake2b(text.encode(), digest_size=16).hexdigest(),
    )


def _files(folders: Iterable[Path]) -> Iterator[_File]:
    entries = files = 0
    known: set[str] = set()
    for root in folders:
        waiting = [str(root)]
        while waiting:
            folder = waiting.pop()
            if folder in known:
                continue
            known.add(folder)
            for entry in _entries(folder):
                entries += 1
                if entries > _MAX_ENTRIES or files >= _MAX_FILES:
                    log.warning("the model folders hold more than is read", files=files, entries=entries)
                    return
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(_SUFFIXES):
                    file = _file(folder, entry)
                    if file is not None:
                        files += 1
                        yield file
                        continue
                if _is_folder(entry):
                    waiting.append(entry.path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Sorted, so that what doesn't fit is always the same; none of a folder that is closed to us or gone."""
    try:
        with os.scandir(folder) as entries:
            return sorted(islice(entries, _MAX_ENTRIES), key=lambda entry: entry.name)
    except OSError:
        return []


def _file(folder: str, entry: os.DirEntry[str]) -> _File | None:
    try:
        # Names that aren't UTF-8, or hold what a database doesn't take, can't be stored.
        entry.path.encode()
        status = entry.stat()
    except (OSError, UnicodeEncodeError):
        return None
    if not stat.S_ISREG(status.st_mode) or len(entry.path) > _MAX_PATH:
        return None
    return _File(folder, entry.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _moment(nanoseconds: int) -> datetime:
    """A file may bear any time; calendars end earlier."""
    return datetime.fromtimestamp(min(max(nanoseconds // 1000, 0), _LAST_MICROSECOND) / 10**6, UTC)
