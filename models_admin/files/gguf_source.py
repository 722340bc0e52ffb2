"""The bytes of a GGUF file's header: taken one after the other, hashed as they pass, no more than is allowed."""

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from models_admin.files.gguf_info import GGUFError, UnreadableError

LENGTH = struct.Struct("<Q")
# Far above any real model's; a file beyond them is broken or hostile.
_MAX_HEADER_BYTES = 128 * 2**20
_MAX_ITEMS = 4_000_000
_MAX_KEPT_BYTES = 16 * 2**20
_CHUNK = 2**18
_SAMPLE_BYTES = 2**14


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, int]]:
    """Descriptor and size. A pipe or a device that has taken the file's place meanwhile is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("The file can't be read: it isn't a regular file.")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


class Allowance:
    """What the headers of a model's parts may cost together: bytes read, items walked, bytes kept in memory."""

    def __init__(self) -> None:
        self._read = _MAX_HEADER_BYTES
        self._items = _MAX_ITEMS
        self._kept = _MAX_KEPT_BYTES

    def read(self, count: int) -> None:
        """Ask for so many bytes of the header."""
        self._read -= count
        if self._read < 0:
            raise GGUFError(f"The header is larger than {_MAX_HEADER_BYTES // 2**20} MiB; it is damaged.")

    def walk(self, count: int) -> None:
        """Ask for so many items of lists."""
        self._items -= count
        if self._items < 0:
            raise GGUFError(f"The header claims lists of more than {_MAX_ITEMS:,} items; it is damaged.")

    def keep(self, count: int) -> None:
        """Ask for so much memory."""
        self._kept -= count
        if self._kept < 0:
            raise GGUFError("The header holds more text than any model's; it is damaged.")


class Source:
    """The file's bytes from the first on, hashed as they pass; no length beyond the file's end is believed."""

    def __init__(self, descriptor: int, size: int, allowance: Allowance) -> None:
        self.allowance = allowance
        self._descriptor = descriptor
        self._size = size
        self._buffer = b""
        self._at = 0
        self._base = 0
        self._digest = digest_of(LENGTH.pack(size))

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._base + self._at

    def take(self, count: int) -> bytes:
        """The next bytes."""
        start = self._claim(count)
        return self._buffer[start : start + count]

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        """The next numbers."""
        return form.unpack_from(self._buffer, self._claim(form.size))

    def skip(self, count: int) -> None:
        """Pass over bytes, piece by piece: they may be many."""
        if count > self._size - self.position:
            raise _cut_off()
        while count:
            step = min(count, _CHUNK)
            self._claim(step)
            count -= step

    def skip_texts(self, count: int) -> None:
        """Pass over so many texts: the inner loop of every vocabulary."""
        for _ in range(count):
            at = self._at
            if at + 8 > len(self._buffer):
                at = self._claim(8)
                self._at = at
            (length,) = LENGTH.unpack_from(self._buffer, at)
            end = at + 8 + length
            if end <= len(self._buffer):
                self._at = end
            else:
                self._at = at + 8
                self.skip(length)

    def finish(self, samples: int, data_start: int) -> str:
        """The digest of size, header and `samples` blocks of what follows."""
        self._digest.update(memoryview(self._buffer)[: self._at])
        rest = self._size - data_start
        if rest > 0:
            last = max(0, rest - _SAMPLE_BYTES)
            for number in range(samples):
                offset = data_start + last * number // max(1, samples - 1)
                self._digest.update(os.pread(self._descriptor, _SAMPLE_BYTES, offset))
                if not last:
                    break
        return self._digest.hexdigest()

    def _claim(self, count: int) -> int:
        """Where in the buffer the next `count` bytes begin; they are taken."""
        start = self._at
        if start + count > len(self._buffer):
            self._fill(count)
            start = self._at
        self._at = start + count
        return start

    def _fill(self, count: int) -> None:
        if count > self._size - self.position:
            raise _cut_off()
        self._digest.update(memoryview(self._buffer)[: self._at])
        self._base += self._at
        pieces, self._at = [self._buffer[self._at :]], 0
        have = len(pieces[0])
        while have < count:
            piece = os.read(self._descriptor, max(_CHUNK, count - have))
            if not piece:
                raise _cut_off()
            self.allowance.read(len(piece))
            pieces.append(piece)
            have += len(piece)
        self._buffer = b"".join(pieces)


def digest_of(start: bytes) -> blake2b:
    """The beginning of a content's id."""
    return blake2b(start, digest_size=32)


def _cut_off() -> GGUFError:
    return GGUFError("The file ends in the middle of its header; it is incomplete.")
