"""The files of this machine's model folders: found, read and kept as rows."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from django.utils import timezone

from llamaproj import env
from models_admin.gguf_info import GGUFError, GGUFInfo
from models_admin.models import ModelFile, Node

_SUFFIXES = frozenset({".gguf", ".bin"})
_MAX_FILES = 5000
_MAX_PATH = 1024


@dataclass(frozen=True)
class Scan:
    """What a scan found."""

    good: int
    broken: int
    missing: int


def scan(node: Node) -> Scan:
    """Bring the node's rows in line with the files in MODELS_DIR. Runs on that node; doing it twice changes nothing."""
    found = {str(path): path for path in _files()}
    rows = {row.path: row for row in ModelFile.objects.filter(node=node)}
    broken = 0
    for text, path in found.items():
        row = _read_into(rows.get(text) or ModelFile(node=node, path=text), path)
        broken += bool(row.error)
    gone = [row.pk for text, row in rows.items() if text not in found]
    ModelFile.objects.filter(pk__in=gone, served__isnull=True).delete()
    missing = ModelFile.objects.filter(pk__in=gone).update(missing=True)
    return Scan(good=len(found) - broken, broken=broken, missing=missing)


def info_of(file: ModelFile) -> GGUFInfo | None:
    """The header of a file as the last scan read it, None for a broken one."""
    if file.error or "values" not in file.metadata:
        return None
    kept = file.metadata
    return GGUFInfo(
        size_bytes=file.size_bytes,
        metadata=kept["values"],
        parameters=file.parameters or 0,
        tensor_bytes=kept["tensor_bytes"],
        quantization=file.quantization,
        embedding_bytes=kept["embedding_bytes"],
        tied_output=kept["tied_output"],
        parts=kept["parts"],
    )


def _files() -> Iterator[Path]:
    """Model files under MODELS_DIR. Links to files are followed, links to folders are not: they may go in circles."""
    count = 0
    for folder in env.MODELS_DIRS:
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                path = Path(parent, name)
                if path.suffix.lower() in _SUFFIXES and not name.startswith(".") and _is_file(path):
                    count += 1
                    if count > _MAX_FILES:
                        return
                    yield path


def _is_file(path: Path) -> bool:
    try:
        # Names that aren't UTF-8 can't be stored.
        str(path).encode()
        return stat.S_ISREG(path.stat().st_mode) and len(str(path)) <= _MAX_PATH
    except (OSError, UnicodeEncodeError):
        return False


def _read_into(row: ModelFile, path: Path) -> ModelFile:
    # Numpy comes with it; of the portal's processes only the nodes' workers need it.
    from models_admin.gguf_header import read

    status = path.stat()
    modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
    unchanged = (
        row.pk
        and not row.missing
        and row.modified_at == modified_at
        and row.metadata.get("bytes") == status.st_size
    )
    if unchanged and not row.error:
        return row
    row.size_bytes, row.modified_at, row.scanned_at = status.st_size, modified_at, timezone.now()
    row.missing, row.error = False, ""
    try:
        if path.suffix.lower() == ".bin":
            raise GGUFError(
                "This is an older format (.bin); llama-server reads GGUF files. Convert it first."
            )
        info = read(path)
    except GGUFError as error:
        row.error = str(error)
        row.metadata = {"bytes": status.st_size}
    else:
        row.size_bytes = info.size_bytes
        row.name = info.name[:200]
        row.architecture = info.architecture[:80]
        row.parameters = info.parameters
        row.quantization = info.quantization[:40]
        row.context_tokens = info.context_tokens
        row.chat_template = info.chat_template
        row.metadata = {
            "bytes": status.st_size,
            "values": {key: value for key, value in info.metadata.items() if _is_kept(key, value)},
            "tensor_bytes": info.tensor_bytes,
            "embedding_bytes": info.embedding_bytes,
            "tied_output": info.tied_output,
            "parts": info.parts,
        }
    row.save()
    return row


def _is_kept(key: str, value: object) -> bool:
    """Long texts and vocabularies stay in the file."""
    return (
        value is not None
        and key != "tokenizer.chat_template"
        and not (isinstance(value, str) and len(value) > 2000)
    )
