"""Places for downloaded files in this machine's first model folder: none outside it, none over something else.

A file grows beside its place, under a hidden name that carries its digest: other content never continues it. Whoever
has it open holds its lock; the system lets go of that when the process ends, however it ends. Folders are opened one by
one without following links.
"""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llamaproj import env
from models_admin.hub import hub

_DIGITS = 16


class PlaceError(Exception):
    """The file can't be put there; the message is a sentence that says why."""


class TakenError(Exception):
    """Another thread or process works on the file."""


@dataclass(frozen=True)
class Place:
    """Where a file will be: `target` is its path below the model folder, `digest` what it will hold."""

    target: str
    digest: str

    @property
    def path(self) -> Path:
        """The whole path."""
        return env.MODELS_DIRS[0] / self.target

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.target.rsplit("/", 1)[-1]

    @property
    def partial_name(self) -> str:
        """Its name while it grows. The catalog passes over hidden files."""
        return f".{self.name[:200]}.{self.digest[:_DIGITS]}.part"

    def check(self) -> None:
        """Raise `PlaceError` for what is no path of a GGUF file below the model folder."""
        if not hub.is_good_path(self.target) or not self.digest.isalnum():
            raise PlaceError("The file's name on the hub can't be used on this machine.")

    def holds(self) -> int | None:
        """The size of what is there already; None where nothing is."""
        with self._folder() as folder:
            try:
                status = os.stat(self.name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(status.st_mode):
                raise PlaceError(f"There is something else named {self.path} already; move it away first.")
            return status.st_size

    def open_finished(self) -> BinaryIO:
        """What is there already, for reading."""
        with self._folder() as folder:
            return os.fdopen(os.open(self.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb")

    @contextmanager
    def open_partial(self) -> Iterator[BinaryIO]:
        """The growing file for reading and writing, locked, made if it isn't there. Raises `TakenError`."""
        with self._folder() as folder:
            try:
                number = os.open(
                    self.partial_name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644, dir_fd=folder
                )
            except OSError as error:
                raise _cannot(self.path, error) from error
        with os.fdopen(number, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TakenError from None
            if not self._is(file):
                # It was finished or removed between the opening and the lock.
                raise TakenError
            yield file

    def finish(self, file: BinaryIO) -> None:
        """Give the growing file its name. Call it with the lock held."""
        file.flush()
        os.fsync(file.fileno())
        if self.holds() is not None:
            raise PlaceError(f"There is another file named {self.path} already; move it away first.")
        with self._folder() as folder:
            os.rename(self.partial_name, self.name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)

    def unlink_partial(self) -> None:
        """Remove the growing file. Call it with the lock held."""
        with self._folder() as folder, suppress(FileNotFoundError):
            os.unlink(self.partial_name, dir_fd=folder)

    def remove_partial(self) -> bool:
        """Remove the growing file unless somebody works on it; folders that are empty then go, too. False if taken."""
        if not (self.path.parent / self.partial_name).exists():
            return True
        try:
            with self.open_partial():
                self.unlink_partial()
        except TakenError:
            return False
        self._remove_empty_folders()
        return True

    def _is(self, file: BinaryIO) -> bool:
        mine = os.fstat(file.fileno())
        with self._folder() as folder, suppress(FileNotFoundError):
            there = os.stat(self.partial_name, dir_fd=folder, follow_symlinks=False)
            return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
        return False

    def _remove_empty_folders(self) -> None:
        for folder in list(self.path.parents)[: self.target.count("/")]:
            try:
                folder.rmdir()
            except OSError:
                return

    @contextmanager
    def _folder(self) -> Iterator[int]:
        """The folder the file is in, made if it isn't there, as a descriptor."""
        self.check()
        root = env.MODELS_DIRS[0]
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            root.mkdir(parents=True, exist_ok=True)
            current = os.open(root, flags)
        except OSError as error:
            raise _cannot(root, error) from error
        try:
            for name in self.target.split("/")[:-1]:
                try:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=current)
                    below = os.open(name, flags, dir_fd=current)
                except OSError as error:
                    raise _cannot(self.path.parent, error) from error
                os.close(current)
                current = below
            yield current
        finally:
            os.close(current)


def free_bytes() -> int:
    """What the disk of the first model folder has left for us."""
    folder = env.MODELS_DIRS[0]
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _cannot(path: Path, error: OSError) -> PlaceError:
    return PlaceError(f"The folder for it can't be written: {path} ({error.strerror or error}).")
