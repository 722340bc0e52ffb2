"""GGUF files as a test wants them, byte by byte."""

import struct
from pathlib import Path

from gguf.constants import GGUFValueType

MAGIC = b"GGUF"


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: GGUFValueType, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def word(key: str, value: str | bytes) -> bytes:
    return pair(key, GGUFValueType.STRING, text(value))


def number(key: str, value: int) -> bytes:
    return pair(key, GGUFValueType.UINT32, struct.pack("<I", value))


def array(key: str, kind: GGUFValueType, length: int, items: bytes = b"") -> bytes:
    return pair(key, GGUFValueType.ARRAY, struct.pack("<IQ", kind, length) + items)


def tensor(name: str, *dimensions: int, kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    return text(name) + struct.pack("<I", len(dimensions)) + sizes + struct.pack("<IQ", kind, offset)


def header(pairs: list[bytes], tensors: list[bytes], version: int = 3) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors), len(pairs))
    return MAGIC + counts + b"".join(pairs) + b"".join(tensors)


def whole(pairs: list[bytes], tensors: list[bytes], data: int | bytes) -> bytes:
    """Header, padding, data: these bytes, or so many zeros."""
    head = header(pairs, tensors)
    return head + bytes(-len(head) % 32) + (bytes(data) if isinstance(data, int) else data)


def small_model(*pairs: bytes, data: bytes = bytes(256)) -> bytes:
    """A model of 64 numbers; its own pairs take the place of these."""
    basic = [
        word("general.architecture", "llama"),
        word("general.name", "Tiny"),
        number("llama.context_length", 512),
    ]
    by_key = {_key(one): one for one in (*basic, *pairs)}
    return whole(list(by_key.values()), [tensor("token_embd.weight", 8, 8)], data)


def projector(name: str = "Tiny", width: int = 0, **words: str) -> bytes:
    """A projector for images of the newer kind, handing over tokens of so many numbers."""
    pairs = [
        word("general.architecture", "clip"),
        word("general.name", name),
        word("clip.projector_type", words.get("projector_type", "gemma3")),
        *([number("clip.vision.projection_dim", width)] if width else []),
    ]
    return whole(pairs, [tensor("mm.weight", 8)], 32)


def adapter() -> bytes:
    pairs = [word("general.architecture", "llama"), word("general.type", "adapter")]
    return whole(pairs, [tensor("blk.0.attn_q.weight.lora_a", 8)], 32)


def part(number_of: int, count: int, data: bytes = bytes(32)) -> bytes:
    """One of the parts of a split model, counted from 1."""
    pairs = [
        word("general.architecture", "llama"),
        number("split.no", number_of - 1),
        number("split.count", count),
    ]
    return whole(pairs, [tensor(f"part{number_of}", 8)], data)


def write_parts(folder: Path, name: str, count: int) -> list[Path]:
    """A split model; its parts differ."""
    return [
        write(folder / f"{name}-{one:05}-of-{count:05}.gguf", part(one, count, bytes([one]) * 32))
        for one in range(1, count + 1)
    ]


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _key(pair: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", pair)
    return pair[8 : 8 + length]
