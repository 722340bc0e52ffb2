"""Reads what a GGUF file says about itself, from its header alone.

The format and its numbers come from the `gguf` package. Its reader isn't used: it trusts every length in the
file (an array of 2⁶⁰ items keeps it busy for ever) and builds an object for each of a vocabulary's words (2.4 s
for the smallest model; this takes 0.05 s). The file is read, not mapped: one that shrinks meanwhile must not end
the process. A header may be anybody's: what reading it costs is bounded, whatever it claims.
"""

import math
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType, LlamaFileType

from models_admin.files.gguf_info import (
    MAX_PARTS,
    PART,
    GGUFError,
    GGUFInfo,
    UnreadableError,
    Value,
    part_name,
)
from models_admin.files.gguf_source import LENGTH, Allowance, Source, digest_of, opened

# Far above any real model's; a file beyond them is broken or hostile.
_MAX_PAIRS = 10_000
_MAX_TENSORS = 100_000
_MAX_KEY_BYTES = 65_535
_MAX_DIMENSIONS = 4
_MAX_NESTING = 2
_MAX_COUNT = 2**63 - 1
_MAX_SHAPE = {
    "block_count": 4096,
    "attention.head_count": 2**14,
    "attention.head_count_kv": 2**14,
    "attention.key_length": 2**16,
    "attention.value_length": 2**16,
    "embedding_length": 2**20,
    "feed_forward_length": 2**24,
}
# What is longer (vocabularies, a tokenizer's own file) is passed over.
_KEPT_ITEMS = 1024
_KEPT_TEXT_BYTES = 2**20
# What an object takes besides its text.
_OBJECT_BYTES = 64

# Blocks read of the weights for the content's id: a disk that has to seek still finds them in a blink.
_SAMPLES = 32

_WORD = struct.Struct("<I")
_KIND_AND_OFFSET = struct.Struct("<IQ")
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


def read(path: Path) -> GGUFInfo:
    """Describe the model, projector or adapter that begins with this file; a split model's parts are one.

    Raises `GGUFError` for whatever llama-server can't use. `content_id` is a digest over the sizes, the headers
    (all metadata, all tensors' names, shapes and places) and blocks sampled evenly from the weights of every part:
    a few hundred KiB are read, however large the model.
    """
    allowance = Allowance()
    match = PART.search(path.name)
    named = int(match[2]) if match else 1
    samples = max(2, _SAMPLES // min(max(named, 1), MAX_PARTS))
    info = _read_one(path, allowance, samples)
    count = info.metadata.get("split.count")
    count = count if isinstance(count, int) and count > 1 else 1
    if count > 1:
        info = _joined(path, info, count, allowance, samples)
    elif named > 1:
        raise GGUFError(f"The name says that this is one of {named} parts, the header says it is whole.")
    _check(info)
    return info


def _joined(path: Path, first: GGUFInfo, count: int, allowance: Allowance, samples: int) -> GGUFInfo:
    number = first.metadata.get("split.no")
    match = PART.search(path.name)
    if number != 0 and isinstance(number, int):
        raise GGUFError(f"This is part {number + 1} of {count} of a split model; the first stands for all.")
    if match is None or int(match[2]) != count or int(match[1]) != 1 or count > MAX_PARTS:
        raise GGUFError(f"This is a split model, but the name doesn't end in -00001-of-{count:05}.gguf.")
    whole = replace(first, parts=count)
    digest = digest_of(first.content_id.encode())
    for part in range(2, count + 1):
        sibling = path.with_name(part_name(match, part))
        if not sibling.is_file():
            raise GGUFError(f"Part {part} of {count} is missing: {sibling.name}.")
        try:
            more = _read_one(sibling, allowance, samples)
        except GGUFError as error:
            raise type(error)(f"Part {part} of {count}, {sibling.name}: {error}") from None
        if more.metadata.get("split.no") != part - 1 or more.metadata.get("split.count") != count:
            raise GGUFError(f"{sibling.name} isn't part {part} of this model, though it is called so.")
        digest.update(more.content_id.encode())
        whole = replace(
            whole,
            size_bytes=whole.size_bytes + more.size_bytes,
            parameters=whole.parameters + more.parameters,
            tensor_bytes=whole.tensor_bytes + more.tensor_bytes,
            embedding_bytes=whole.embedding_bytes or more.embedding_bytes,
            tied_output=whole.tied_output and more.tied_output,
            tensor_types=whole.tensor_types + more.tensor_types,
        )
    label = _label(first.metadata.get("general.file_type"), whole.tensor_types)
    return replace(whole, quantization=label, content_id=digest.hexdigest())


def _check(info: GGUFInfo) -> None:
    """Raise `GGUFError` for what is no model, projector or adapter, or one that can't exist."""
    if info.text("general.type") == "imatrix":
        raise GGUFError("This is an importance matrix, made for quantising a model, not a model.")
    if not info.architecture:
        raise GGUFError("The file doesn't say which architecture the model has.")
    if not info.tensor_bytes:
        raise GGUFError("The file holds a vocabulary only, no weights.")
    if max(info.parameters, info.size_bytes) > _MAX_COUNT:
        raise GGUFError(f"The header claims {info.parameters:,} parameters; it is damaged.")
    for key, most in _MAX_SHAPE.items():
        number = info.number(key)
        if number and number > most:
            raise GGUFError(f"The header claims a {key} of {number:,}; it is damaged.")


def _read_one(path: Path, allowance: Allowance, samples: int) -> GGUFInfo:
    try:
        with opened(path) as (descriptor, size):
            source = Source(descriptor, size, allowance)
            return _Header(source, size, samples).info()
    except OSError as error:
        advice = " Let the portal's user read it." if isinstance(error, PermissionError) else ""
        raise UnreadableError(f"The file can't be read: {error.strerror or error}.{advice}") from None


class _Header:
    """Walks once, from the first byte to the first tensor's."""

    def __init__(self, source: Source, size: int, samples: int) -> None:
        self._source = source
        self._size = size
        self._samples = samples

    def info(self) -> GGUFInfo:
        """What the file says. Raises `GGUFError`."""
        if self._size < 24:
            raise GGUFError("The file is too short to be a GGUF file.")
        if self._source.take(4) != _WORD.pack(GGUF_MAGIC):
            raise GGUFError("This isn't a GGUF file.")
        version = self._source.take(4)
        if struct.unpack(">I", version)[0] in (2, 3):
            raise GGUFError("The file is for machines of the other byte order (big-endian).")
        (number,) = _WORD.unpack(version)
        if number not in (2, 3):
            raise GGUFError(f"GGUF version {number} isn't supported; convert the model again.")
        tensors, pairs = self._length(), self._length()
        if tensors > _MAX_TENSORS or pairs > _MAX_PAIRS:
            raise GGUFError(f"The header claims {tensors} tensors and {pairs} entries; it is damaged.")
        metadata: dict[str, Value] = {}
        for _ in range(pairs):
            key = self._text(_MAX_KEY_BYTES)
            if key in metadata:
                raise GGUFError(f"The header has two entries {_short(key)}; it is damaged.")
            metadata[key] = self._value(self._value_type(), 0)
        return self._with_tensors(metadata, tensors)

    def _with_tensors(self, metadata: dict[str, Value], count: int) -> GGUFInfo:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment.bit_count() != 1 or not 0 < alignment <= 2**20:
            raise GGUFError("The header's alignment makes no sense; it is damaged.")
        parameters = 0
        sizes: dict[str, int] = {}
        places: list[tuple[int, int]] = []
        bytes_of: Counter[str] = Counter()
        for _ in range(count):
            name = self._text(_MAX_KEY_BYTES)
            if name in sizes:
                raise GGUFError(f"The header has two tensors {_short(name)}; it is damaged.")
            elements, kind, sizes[name], offset = self._tensor(name)
            if offset % alignment:
                raise GGUFError(f"Tensor {_short(name)} isn't where it may be; the header is damaged.")
            parameters += elements
            bytes_of[kind] += sizes[name]
            places.append((offset, sizes[name]))
        start = -(-self._source.position // alignment) * alignment
        self._check_places(places, start)
        return GGUFInfo(
            size_bytes=self._size,
            metadata=metadata,
            parameters=parameters,
            tensor_bytes=sum(sizes.values()),
            quantization=_label(metadata.get("general.file_type"), bytes_of),
            embedding_bytes=sizes.get("token_embd.weight", 0),
            tied_output="output.weight" not in sizes,
            tensor_types=bytes_of,
            content_id=self._source.finish(self._samples, start),
        )

    def _tensor(self, name: str) -> tuple[int, str, int, int]:
        """Elements, type, bytes and offset."""
        (dimensions,) = self._source.unpack(_WORD)
        if dimensions > _MAX_DIMENSIONS:
            raise GGUFError(f"Tensor {_short(name)} claims {dimensions} dimensions; it is damaged.")
        shape = [self._length() for _ in range(dimensions)]
        kind, offset = self._source.unpack(_KIND_AND_OFFSET)
        try:
            quantization = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[quantization]
        except (ValueError, KeyError):
            raise GGUFError(f"Tensor {_short(name)} is of an unknown type ({kind}).") from None
        elements = math.prod(shape)
        size = elements // block * block_bytes
        if size > self._size or elements > _MAX_COUNT:
            raise GGUFError(f"Tensor {_short(name)} is larger than the file, which is incomplete or damaged.")
        if shape and shape[0] % block:
            raise GGUFError(
                f"Tensor {_short(name)} has rows that its type can't have; the header is damaged."
            )
        return elements, quantization.name, size, offset

    def _check_places(self, places: list[tuple[int, int]], start: int) -> None:
        end = 0
        for offset, size in sorted(places):
            if offset < end:
                raise GGUFError("Two tensors lie in the same place; the header is damaged.")
            end = offset + size
        if places and start + end > self._size:
            raise GGUFError(
                f"The file is incomplete: {self._size:,} of {start + end:,} bytes are there. Get it again."
            )

    def _length(self) -> int:
        return self._source.unpack(LENGTH)[0]

    def _text(self, limit: int) -> str:
        length = self._length()
        if length > limit:
            raise GGUFError(f"The header claims a name of {length:,} bytes; it is damaged.")
        return self._taken_text(length)

    def _taken_text(self, length: int) -> str:
        self._source.allowance.keep(length + _OBJECT_BYTES)
        # PostgreSQL keeps no NUL in texts.
        return self._source.take(length).decode("utf-8", errors="replace").replace("\0", "")

    def _value_type(self) -> GGUFValueType:
        (kind,) = self._source.unpack(_WORD)
        try:
            return GGUFValueType(kind)
        except ValueError:
            raise GGUFError(f"The header holds a value of unknown type {kind}; it is damaged.") from None

    def _value(self, kind: GGUFValueType, depth: int) -> Value:
        if kind == GGUFValueType.STRING:
            length = self._length()
            if length > _KEPT_TEXT_BYTES:
                self._source.skip(length)
                return None
            return self._taken_text(length)
        if kind == GGUFValueType.ARRAY:
            return self._array(depth)
        return self._numbers(_NUMBERS[kind], 1)[0]

    def _array(self, depth: int) -> Value:
        kind, length = self._value_type(), self._length()
        if depth >= _MAX_NESTING:
            raise GGUFError("The header's lists are nested too deep; it is damaged.")
        if kind in _NUMBERS:
            code = _NUMBERS[kind]
            if length > _KEPT_ITEMS:
                self._source.skip(length * struct.calcsize("<" + code))
                return None
            return self._numbers(code, length)
        self._source.allowance.walk(length)
        if kind == GGUFValueType.STRING and length > _KEPT_ITEMS:
            self._source.skip_texts(length)
            return None
        if length > _KEPT_ITEMS:
            for _ in range(length):
                self._value(kind, depth + 1)
            return None
        self._source.allowance.keep(length * _OBJECT_BYTES)
        return [self._value(kind, depth + 1) for _ in range(length)]

    def _numbers(self, code: str, length: int) -> list[Value]:
        self._source.allowance.keep(length * _OBJECT_BYTES)
        form = struct.Struct(f"<{length}{code}")
        return [_finite(item) for item in self._source.unpack(form)]


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
