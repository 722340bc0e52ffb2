"""The files of this machine's model folders: found, read and kept as rows."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import orjson
from django.db import transaction
from django.db.models import Exists, OuterRef
from django.db.models.fields.json import KT
from django.utils import timezone

from llamaproj import env
from models_admin.files import folder_contents, projectors
from models_admin.files.folder_contents import Found
from models_admin.files.gguf_info import GGUFError, GGUFInfo, UnreadableError, Value
from models_admin.files.projectors import Candidate
from models_admin.models import ModelFile, Node, ServedModel

# A new number has every file read again: rows hold what an older reader saw.
_READER = 2
# What a row keeps of a header: all that real ones hold but vocabularies and templates.
_MAX_KEY = 200
_MAX_VALUE_BYTES = 2**14
_MAX_VALUES_BYTES = 2**18


@dataclass
class Scan:
    """What a scan found, and how many files it had to read for it."""

    good: int = 0
    broken: int = 0
    missing: int = 0
    moved: int = 0
    changed: int = 0
    read: int = 0


def scan(node: Node) -> Scan:
    """Bring the node's rows in line with the files in MODELS_DIR. Runs on that node; doing it twice changes nothing.

    A file that lies elsewhere now keeps its row, and so its served models. A row that is served is never deleted.
    """
    with _record(node) as record:
        fcntl.flock(record, fcntl.LOCK_EX)
        found = folder_contents.find(env.MODELS_DIRS)
        result = _Pass(node, found).run()
        _pair(node)
        record.truncate(0)
        record.write(folder_contents.fingerprint(found))
    return result


def changed_since_last_scan(node: Node) -> bool:
    """Whether `scan` would find something new. Runs on that node; opens no model file and asks no database.

    False while a scan runs: what comes meanwhile is noticed after it.
    """
    with _record(node) as record:
        try:
            fcntl.flock(record, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        record.seek(0)
        before = record.read()
    return before != folder_contents.fingerprint(folder_contents.find(env.MODELS_DIRS))


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
        content_id=file.content_id,
    )


def fields_of(found: Found) -> dict[str, Any]:
    """A row's values for what lies there now; `error` says what is wrong with it."""
    now = {"size_bytes": found.size_bytes, "modified_at": found.modified_at}
    kept: dict[str, Any] = {"parts": found.parts, "seen": _seen(found)}
    try:
        info = _read(found)
    except UnreadableError as error:
        # What is known of it stays: it may be in order. A file may be open to us the next time.
        return now | {"error": str(error), "metadata": kept if found.lacks else kept | {"seen": ""}}
    except GGUFError as error:
        by_name = found.path.name.lower().startswith("mmproj")
        kind = ModelFile.Kind.PROJECTOR if by_name else ModelFile.Kind.MODEL
        return now | _described(None) | {"error": str(error), "kind": kind, "metadata": kept}
    kept |= {
        "values": _kept_values(info.metadata),
        "tensor_bytes": info.tensor_bytes,
        "embedding_bytes": info.embedding_bytes,
        "tied_output": info.tied_output,
        "width": info.width,
    }
    kind = ModelFile.Kind.MODEL
    if info.is_projector:
        kind = ModelFile.Kind.PROJECTOR
    elif info.is_adapter:
        kind = ModelFile.Kind.ADAPTER
    return now | _described(info) | {"error": "", "kind": kind, "metadata": kept}


class _Pass:
    """One comparison of files and rows."""

    def __init__(self, node: Node, found: dict[str, Found]) -> None:
        self._node = node
        self._found = found
        # Headers and templates of a thousand unchanged files would be megabytes.
        rows = ModelFile.objects.filter(node=node).defer("metadata", "chat_template")
        served = Exists(ServedModel.objects.filter(file=OuterRef("pk")))
        rows = rows.annotate(seen=KT("metadata__seen"), is_served=served).order_by("-is_served", "pk")
        self._rows: dict[str, Any] = {row.path: row for row in rows}
        self._result = Scan()

    def run(self) -> Scan:
        """Do it."""
        for path in sorted(self._found):
            self._look_at(path, self._found[path])
        self._merge_copies()
        present = {path: row for path, row in self._rows.items() if path in self._found}
        self._result.broken = sum(1 for row in present.values() if row.error)
        self._result.good = len(present) - self._result.broken
        self._drop_absent()
        return self._result

    def _look_at(self, path: str, found: Found) -> None:
        row = self._rows.get(path)
        if row is not None and row.seen == _seen(found):
            if row.missing:
                row.missing = False
                row.save(update_fields=["missing"])
            return
        self._result.read += 1
        fields = fields_of(found)
        row = row or self._moved_here(path, fields) or ModelFile(node=self._node, path=path)
        self._store(row, fields)

    def _moved_here(self, path: str, fields: dict[str, Any]) -> Any:
        """The row of a file that had this content and isn't where it was: a served one first."""
        row = self._absent_with(fields.get("content_id", ""))
        if row is None:
            return None
        del self._rows[row.path]
        row.path = path
        self._result.moved += 1
        return row

    def _absent_with(self, content_id: str) -> Any:
        absent = (row for path, row in self._rows.items() if path not in self._found)
        return next((row for row in absent if content_id and row.content_id == content_id), None)

    def _store(self, row: Any, fields: dict[str, Any]) -> None:
        now = timezone.now()
        # Something between a good file and the next one, as while it is being written, is a change, too.
        if row.content_id != fields.get("content_id", row.content_id) and (row.content_id or row.changed_at):
            row.changed_at = now
            self._result.changed += 1
        for name, value in fields.items():
            setattr(row, name, value)
        row.scanned_at, row.missing = now, False
        row.save()
        self._rows[row.path] = row

    def _merge_copies(self) -> None:
        """Where a served file is gone and a copy of it was known before, as after a slow move: serve the copy."""
        for path, row in list(self._rows.items()):
            if path in self._found or not row.is_served or not row.content_id:
                continue
            copies = (one for one in self._rows.values() if one.path in self._found and not _is_served(one))
            copy = next((one for one in copies if one.content_id == row.content_id), None)
            if copy is None:
                continue
            fields = {name: getattr(copy, name) for name in _COPIED}
            with transaction.atomic():
                copy.delete()
                row.path = copy.path
                self._store(row, fields)
            del self._rows[path]
            self._result.moved += 1

    def _drop_absent(self) -> None:
        gone = [row.pk for path, row in self._rows.items() if path not in self._found]
        with transaction.atomic():
            # Nobody begins to serve one of them between the look and the deletion.
            rows = ModelFile.objects.select_for_update().filter(pk__in=gone)
            served = set(
                ServedModel.objects.filter(file__in=[row.pk for row in rows]).values_list("file", flat=True)
            )
            ModelFile.objects.filter(pk__in=set(gone) - served).delete()
            ModelFile.objects.filter(pk__in=served).update(missing=True)
        self._result.missing = len(served)


_COPIED = ("size_bytes", "modified_at", "metadata", "error", "kind", "content_id")


def _is_served(row: Any) -> bool:
    """New rows aren't, and bear no mark."""
    return getattr(row, "is_served", False)


def _pair(node: Node) -> None:
    """Give each of the node's models the projector that belongs to it."""
    rows = (
        ModelFile.objects.filter(node=node, missing=False, error="")
        .annotate(width=KT("metadata__width"))
        .values_list("pk", "path", "name", "width", "quantization", "kind", "projector")
    )
    of_kind: dict[str, list[Candidate[int]]] = {kind: [] for kind in ModelFile.Kind}
    before = {}
    for pk, path, name, width, quantization, kind, projector in rows:
        of_kind[kind].append(Candidate(pk, path, name, int(width) if width else None, quantization))
        before[pk] = projector
    pairs = projectors.paired(of_kind[ModelFile.Kind.MODEL], of_kind[ModelFile.Kind.PROJECTOR])
    for pk, projector in before.items():
        if projector != pairs.get(pk):
            ModelFile.objects.filter(pk=pk).update(projector=pairs.get(pk))


def _read(found: Found) -> GGUFInfo:
    # Numpy comes with it; of the portal's processes only the nodes' workers need it.
    from models_admin.files.gguf_header import read

    if found.path.suffix.lower() == ".bin":
        raise GGUFError("This is an older format (.bin); llama-server reads GGUF files. Convert it first.")
    if found.lacks:
        raise UnreadableError(found.lacks)
    return read(found.path)


def _described(info: GGUFInfo | None) -> dict[str, Any]:
    """What a header tells of the model; nothing of a broken one."""
    return {
        "content_id": info.content_id if info else "",
        "name": info.name[:200] if info else "",
        "architecture": info.architecture[:80] if info else "",
        "parameters": info.parameters if info else None,
        "quantization": info.quantization[:40] if info else "",
        "context_tokens": info.context_tokens if info else None,
        "chat_template": info.chat_template if info else "",
    }


def _kept_values(metadata: dict[str, Value]) -> dict[str, Value]:
    """Long texts and vocabularies stay in the file."""
    kept: dict[str, Value] = {}
    total = 0
    for key, value in metadata.items():
        if value is None or key == "tokenizer.chat_template" or len(key) > _MAX_KEY:
            continue
        size = len(orjson.dumps(value))
        if size <= _MAX_VALUE_BYTES and total + size <= _MAX_VALUES_BYTES:
            kept[key] = value
            total += size + len(key)
    return kept


def _seen(found: Found) -> str:
    return f"{_READER}:{found.seen}"


@contextmanager
def _record(node: Node) -> Iterator[IO[str]]:
    """Where this machine notes what its last scan saw; who scans holds a lock on it."""
    path = env.DATA_DIR / "run" / f"scan-{node.pk}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as record:
        yield record
