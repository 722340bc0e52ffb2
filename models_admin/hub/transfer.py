"""One file's bytes from a hub into a file of ours: resumed where they stopped, checked at the end.

    control = Control()
    fetch(client, url, wanted, file, control)      # in one thread
    control.done_bytes                             # in another
    control.interrupt(Cancelled())                 # `fetch` raises it at once, even while the hub is silent

No Django. `fetch` raises what `interrupt` was given, `TransferError` for what trying again doesn't mend, and what
`refused` makes of the hub's refusals.
"""

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import httpx

_READ_BYTES = 2**20
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
# Answers after which waiting helps.
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})

Refused = Callable[[int, Mapping[str, str]], Exception]


class TransferError(Exception):
    """The file can't be had like this; the message is a sentence that says why. `spoilt`: what is there is no use."""

    def __init__(self, message: str, *, spoilt: bool = False) -> None:
        super().__init__(message)
        self.spoilt = spoilt


class _CutError(Exception):
    """The hub stopped in the middle, or asks us to wait; trying again may help."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds. Tries are counted from the last byte that came."""

    connect: float = 10.0
    silent: float = 30.0
    tries: int = 8
    wait_first: float = 1.0
    wait_longest: float = 60.0


@dataclass(frozen=True)
class Wanted:
    """What the file must be. One digest may be empty; both are hexadecimal."""

    size_bytes: int
    sha256: str = ""
    git_sha1: str = ""


class Control:
    """What two threads know of a transfer: the one that fetches, and the one that watches it."""

    def __init__(self) -> None:
        self.done_bytes = 0
        self.waits_for = ""
        self._why: Exception | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def interrupt(self, why: Exception) -> None:
        """Have the fetching thread raise `why`. The first reason counts."""
        with self._lock:
            self._why = self._why or why
            self._stop.set()
            if self._socket is not None:
                self._shut(self._socket)

    def check(self) -> None:
        """Raise what the transfer was interrupted for, if it was."""
        if self._why is not None:
            raise self._why

    def wait(self, seconds: float) -> None:
        """Wait unless interrupted; then raise."""
        self._stop.wait(seconds)
        self.check()

    def trace(self, event: str, facts: Mapping[str, Any]) -> None:
        """Note the connection that an interruption has to cut; httpx tells of each as it is made."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._socket = facts["return_value"].get_extra_info("socket")
        self.check()

    @staticmethod
    def _shut(connection: socket.socket) -> None:
        """Wake the thread that reads from it."""
        try:
            # Of an encrypted one only the connection below: its own would turn to reading what isn't decrypted.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
        except OSError:
            return


def client(patience: Patience) -> httpx.Client:
    """A client that follows the hub to wherever its bytes are; httpx shows our token to no other host."""
    return httpx.Client(
        timeout=httpx.Timeout(patience.silent, connect=patience.connect),
        follow_redirects=True,
        # Each request makes its connection, and so shows it to `Control.trace`.
        limits=httpx.Limits(max_keepalive_connections=0),
    )


def fetch(
    http: httpx.Client,
    url: str,
    wanted: Wanted,
    file: BinaryIO,
    control: Control,
    *,
    headers: Mapping[str, str],
    refused: Refused,
    patience: Patience,
) -> None:
    """Make `file` (open for reading and writing, ours alone) what is wanted. What it holds isn't fetched again."""
    partial = _Partial(file, wanted, control)
    partial.take_up()
    tries = 0
    while partial.position < wanted.size_bytes:
        before = partial.position
        try:
            _stream(http, url, dict(headers), partial, control, refused)
        except (httpx.RequestError, _CutError) as error:
            control.check()
            tries = 1 if partial.position > before else tries + 1
            if tries >= patience.tries:
                raise TransferError(
                    f"The hub stopped sending: {_words(error)}. Retry goes on from here."
                ) from error
            asked = error.wait_s if isinstance(error, _CutError) else 0.0
            pause = max(asked, patience.wait_first * 2 ** (tries - 1))
            control.waits_for = f"{_words(error)}; trying again"
            control.wait(min(pause, patience.wait_longest))
        else:
            tries = 0 if partial.position > before else tries + 1
            if tries >= patience.tries:
                raise TransferError("The hub sends no bytes. Retry goes on from here.")
    control.waits_for = ""
    partial.check_digest()


def check(file: BinaryIO, wanted: Wanted, control: Control) -> None:
    """Raise `TransferError` unless a whole file is what is wanted."""
    partial = _Partial(file, wanted, control)
    partial.take_up()
    partial.check_digest()


class _Partial:
    """The beginning of a file, hashed as it grows."""

    def __init__(self, file: BinaryIO, wanted: Wanted, control: Control) -> None:
        self.position = 0
        self.wanted = wanted
        self._file = file
        self._control = control
        self._digest = self._fresh()

    def take_up(self) -> None:
        """Hash what an earlier attempt has left."""
        self._file.seek(0)
        while piece := self._file.read(_READ_BYTES):
            self._control.check()
            if self.position + len(piece) > self.wanted.size_bytes:
                self.restart()
                return
            self._grow(piece)

    def write(self, piece: bytes) -> None:
        """Add what has come."""
        if self.position + len(piece) > self.wanted.size_bytes:
            raise TransferError("The hub sends more than the file should hold.", spoilt=True)
        self._file.write(piece)
        self._grow(piece)

    def restart(self) -> None:
        """Forget what is there."""
        self._control.done_bytes -= self.position
        self.position = 0
        self._digest = self._fresh()
        self._file.seek(0)
        self._file.truncate()

    def check_digest(self) -> None:
        """Raise `TransferError` unless the bytes are the ones promised."""
        promised = self.wanted.sha256 or self.wanted.git_sha1
        if promised and self._digest.hexdigest() != promised.lower():
            raise TransferError(
                "The checksum is wrong: what came isn't what the hub promised. It was removed; Retry gets it again.",
                spoilt=True,
            )

    def _grow(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.position += len(piece)
        self._control.done_bytes += len(piece)

    def _fresh(self) -> "hashlib._Hash":
        if self.wanted.sha256 or not self.wanted.git_sha1:
            return hashlib.sha256()
        # Git names a blob by the SHA-1 of its kind, its size and its bytes.
        return hashlib.sha1(f"blob {self.wanted.size_bytes}\0".encode(), usedforsecurity=False)


def _stream(
    http: httpx.Client,
    url: str,
    headers: dict[str, str],
    partial: _Partial,
    control: Control,
    refused: Refused,
) -> None:
    """One request for everything that is still missing."""
    control.check()
    # Always a range: some hubs send large files in no other way. Unpacked by nobody, so that bytes are bytes.
    headers |= {"Range": f"bytes={partial.position}-", "Accept-Encoding": "identity"}
    with http.stream("GET", url, headers=headers, extensions={"trace": control.trace}) as response:
        _check_same(response, partial.wanted)
        if response.status_code == 206:
            _check_range(response, partial)
        elif response.status_code == 200:
            # It doesn't know ranges: everything comes again.
            if partial.position:
                partial.restart()
        elif response.status_code == 416:
            partial.restart()
            raise _CutError("the hub has no such range")
        elif response.status_code in _BUSY:
            wait = response.headers.get("retry-after", "")
            raise _CutError(
                f"the hub is busy (status {response.status_code})", float(wait) if wait.isdecimal() else 0.0
            )
        else:
            raise refused(response.status_code, response.headers)
        control.waits_for = ""
        for piece in response.iter_raw():
            control.check()
            partial.write(piece)
    # Shutting a socket down looks like the end of a stream without a length.
    control.check()


def _check_same(response: httpx.Response, wanted: Wanted) -> None:
    """Refuse other content under the same name. The hub names its content in the answer that leads to its storage."""
    for one in (*response.history, response):
        linked = one.headers.get("x-linked-etag", "").strip('"').removeprefix("W/").strip('"').lower()
        if wanted.sha256 and len(linked) == 64 and linked != wanted.sha256.lower():
            raise TransferError("The file has changed on the hub; look the repository up again.", spoilt=True)


def _check_range(response: httpx.Response, partial: _Partial) -> None:
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None or int(match[1]) != partial.position:
        raise TransferError("The hub sent another part of the file than it was asked for.")
    if int(match[3]) != partial.wanted.size_bytes:
        raise TransferError(
            "The file has changed its size on the hub; look the repository up again.", spoilt=True
        )


def _words(error: Exception) -> str:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "no connection"
    if isinstance(error, httpx.TimeoutException):
        return "no answer"
    if isinstance(error, httpx.RequestError):
        return "the connection was cut"
    return str(error)
