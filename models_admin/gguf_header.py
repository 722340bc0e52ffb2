"""Reads what a GGUF file says about itself, from its header alone.

The format and its numbers come from the `gguf` package. Its reader isn't used: it trusts every length in the
file (an array of 2⁶⁰ items keeps it busy for ever) and builds an object for each of a vocabulary's words (2.4 s
for the smallest model; this takes 0.1 s). The file is read, not mapped: one that shrinks meanwhile must not end
the process.
"""

import math
import re
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType, LlamaFileType

from models_admin.gguf_info import GGUFError, GGUFInfo, Value

# Far above any real model's; a file beyond them is broken or hostile.
_MAX_PAIRS = 10_000
_MAX_TENSORS = 200_000
_MAX_KEY_BYTES = 65_535
_MAX_STRING_BYTES = 8 * 2**20
_MAX_STRINGS = 5_000_000
_MAX_DIMENSIONS = 4
_MAX_NESTING = 2
# Longer arrays (vocabularies) are passed over.
_KEPT_ITEMS = 1024

_NUMBERS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def read(path: Path) -> GGUFInfo:
    """Describe the model that begins with this file; the parts of a split model are taken together.

    Raises `GGUFError` for whatever can't be served as a language model.
    """
    info = _read_one(path)
    count = info.metadata.get("split.count")
    if isinstance(count, int) and count > 1:
        info = _joined(path, info, count)
    if not info.architecture:
        raise GGUFError("The file doesn't say which architecture the model has.")
    if info.architecture == "clip" or info.text("general.type") == "mmproj":
        raise GGUFError("This is a projector for images or sound, an addition to a model, not a model.")
    if info.text("general.type") == "adapter":
        raise GGUFError("This is an adapter (LoRA), an addition to a model, not a model.")
    if not info.tensor_bytes:
        raise GGUFError("The file holds a vocabulary only, no weights.")
    return info


def _joined(path: Path, first: GGUFInfo, count: int) -> GGUFInfo:
    number = first.metadata.get("split.no")
    match = _PART.search(path.name)
    if number != 0 and isinstance(number, int):
        raise GGUFError(f"This is part {number + 1} of {count} of a split model; the first stands for all.")
    if match is None or count > 1000:
        raise GGUFError(f"This is a split model, but the name doesn't end in -00001-of-{count:05}.gguf.")
    whole = replace(first, parts=count)
    for part in range(2, count + 1):
        sibling = path.with_name(f"{path.name[: match.start()]}-{part:05}-of-{count:05}.gguf")
        if not sibling.is_file():
            raise GGUFError(f"Part {part} of {count} is missing: {sibling.name}.")
        more = _read_one(sibling)
        whole = replace(
            whole,
            size_bytes=whole.size_bytes + more.size_bytes,
            parameters=whole.parameters + more.parameters,
            tensor_bytes=whole.tensor_bytes + more.tensor_bytes,
            embedding_bytes=whole.embedding_bytes or more.embedding_bytes,
            tied_output=whole.tied_output and more.tied_output,
        )
    return whole


def _read_one(path: Path) -> GGUFInfo:
    try:
        with path.open("rb", buffering=2**20) as file:
            return _Header(file, path.stat().st_size).info()
    except OSError as error:
        raise GGUFError(f"The file can't be read: {error.strerror or error}.") from None


class _Header:
    """Walks once, from the first byte to the first tensor, and believes no length beyond the file's end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def info(self) -> GGUFInfo:
        if self._size < 24:
            raise GGUFError("The file is too short to be a GGUF file.")
        if self._take(4) != struct.pack("<I", GGUF_MAGIC):
            raise GGUFError("This isn't a GGUF file.")
        version = self._take(4)
        if struct.unpack(">I", version)[0] in (2, 3):
            raise GGUFError("The file is for machines of the other byte order (big-endian).")
        number = struct.unpack("<I", version)[0]
        if number not in (2, 3):
            raise GGUFError(f"GGUF version {number} isn't supported; convert the model again.")
        tensors, pairs = self._number("Q"), self._number("Q")
        if tensors > _MAX_TENSORS or pairs > _MAX_PAIRS:
            raise GGUFError(f"The header claims {tensors} tensors and {pairs} entries; it is damaged.")
        metadata: dict[str, Value] = {}
        for _ in range(pairs):
            key = self._string(_MAX_KEY_BYTES)
            metadata[key] = self._value(self._value_type(), 0)
        return self._with_tensors(metadata, tensors)

    def _with_tensors(self, metadata: dict[str, Value], count: int) -> GGUFInfo:
        parameters = embedding_bytes = stored = end = 0
        tied = True
        bytes_of: Counter[str] = Counter()
        for _ in range(count):
            name = self._string(_MAX_KEY_BYTES)
            dimensions = self._number("I")
            if dimensions > _MAX_DIMENSIONS:
                raise GGUFError(f"Tensor {_short(name)} claims {dimensions} dimensions; it is damaged.")
            elements = math.prod(self._number("Q") for _ in range(dimensions))
            kind = self._number("I")
            offset = self._number("Q")
            try:
                quantization = GGMLQuantizationType(kind)
                block, block_bytes = GGML_QUANT_SIZES[quantization]
            except (ValueError, KeyError):
                raise GGUFError(f"Tensor {_short(name)} is of an unknown type ({kind}).") from None
            size = elements // block * block_bytes
            if size > self._size:
                raise GGUFError(
                    f"Tensor {_short(name)} is larger than the file, which is incomplete or damaged."
                )
            parameters += elements
            stored += size
            end = max(end, offset + size)
            bytes_of[quantization.name] += size
            if name == "token_embd.weight":
                embedding_bytes = size
            elif name == "output.weight":
                tied = False
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or isinstance(alignment, bool) or not 0 < alignment <= 2**20:
            raise GGUFError("The header's alignment makes no sense; it is damaged.")
        whole = -(-self._file.tell() // alignment) * alignment + end if count else 0
        if whole > self._size:
            raise GGUFError(
                f"The file is incomplete: {self._size:,} of {whole:,} bytes are there. Get it again."
            )
        return GGUFInfo(
            size_bytes=self._size,
            metadata=metadata,
            parameters=parameters,
            tensor_bytes=stored,
            quantization=_label(metadata.get("general.file_type"), bytes_of),
            embedding_bytes=embedding_bytes,
            tied_output=tied,
            tensor_types=bytes_of,
        )

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise GGUFError("The file ends in the middle of its header; it is incomplete.")
        return data

    def _number(self, code: str) -> int:
        number = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]
        return int(number)

    def _string(self, limit: int) -> str:
        length = self._number("Q")
        if length > limit:
            raise GGUFError(f"The header claims a text of {length:,} bytes; it is damaged.")
        # PostgreSQL keeps no NUL in texts.
        return self._take(length).decode("utf-8", errors="replace").replace("\0", "")

    def _value_type(self) -> GGUFValueType:
        kind = self._number("I")
        try:
            return GGUFValueType(kind)
        except ValueError:
            raise GGUFError(f"The header holds a value of unknown type {kind}; it is damaged.") from None

    def _value(self, kind: GGUFValueType, depth: int) -> Value:
        if kind == GGUFValueType.STRING:
            return self._string(_MAX_STRING_BYTES)
        if kind == GGUFValueType.ARRAY:
            return self._array(depth)
        code = _NUMBERS[kind]
        number = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]
        return _finite(number)

    def _array(self, depth: int) -> Value:
        kind, length = self._value_type(), self._number("Q")
        if depth >= _MAX_NESTING:
            raise GGUFError("The header's arrays are nested too deep; it is damaged.")
        if kind in _NUMBERS:
            return self._numbers(_NUMBERS[kind], length)
        if length > _MAX_STRINGS:
            raise GGUFError(f"The header claims a list of {length:,} texts; it is damaged.")
        if kind == GGUFValueType.STRING and length > _KEPT_ITEMS:
            for _ in range(length):
                self._skip(self._number("Q"))
            return None
        if length > _KEPT_ITEMS:
            for _ in range(length):
                self._value(kind, depth + 1)
            return None
        return [self._value(kind, depth + 1) for _ in range(length)]

    def _numbers(self, code: str, length: int) -> Value:
        width = struct.calcsize("<" + code)
        if length > _KEPT_ITEMS:
            self._skip(length * width)
            return None
        items = struct.unpack(f"<{length}{code}", self._take(length * width))
        return [_finite(item) for item in items]

    def _skip(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise GGUFError("The file ends in the middle of its header; it is incomplete.")
        self._file.seek(count, 1)


def _finite(number: int | float) -> int | float | None:
    """JSON and PostgreSQL know no infinity."""
    return number if isinstance(number, int) or math.isfinite(number) else None


def _label(file_type: Value, bytes_of: Counter[str]) -> str:
    """`Q4_K_M` as the file says it, or else the type that most of its bytes have."""
    if isinstance(file_type, int) and not isinstance(file_type, bool):
        # Set where a program guessed the type instead of the maker saying it.
        file_type &= ~int(LlamaFileType.GUESSED)
        if file_type in set(LlamaFileType):
            return LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return bytes_of.most_common(1)[0][0] if bytes_of else ""


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:59] + "…")
