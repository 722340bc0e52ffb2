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


def whole(pairs: list[bytes], tensors: list[bytes], data_bytes: int) -> bytes:
    """Header, padding, data."""
    head = header(pairs, tensors)
    return head + bytes(-len(head) % 32) + bytes(data_bytes)


def small_model(*pairs: bytes) -> bytes:
    """A model of 64 numbers; its own pairs win over these, as they come later."""
    basic = [
        word("general.architecture", "llama"),
        word("general.name", "Tiny"),
        number("llama.context_length", 512),
    ]
    return whole([*basic, *pairs], [tensor("token_embd.weight", 8, 8)], 256)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
