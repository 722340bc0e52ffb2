"""What a model on the hub says about itself, from the first megabytes of its file."""

import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx
from django.core.cache import cache
from redis import RedisError

from llamaproj.errors import LlamaProjError
from models_admin.files.gguf_info import GGUFError, GGUFInfo
from models_admin.hub import hub, transfer
from models_admin.hub.hub import Choice, Repository
from models_admin.hub.transfer import Patience

# Vocabularies make headers long: the largest known take 8 MB.
_BEGINNING_BYTES = 12 * 2**20
# A page waits for it.
_LIMIT_S = 6.0
_KEPT_S = 86_400
_UNKNOWN = "unknown"


def header_of(repository: Repository, choice: Choice) -> GGUFInfo | None:
    """The header of the choice's model; None where it can't be had quickly. Asked once a day of each commit.

    All quantisations of a model have the same shape, so the smallest file in one piece speaks for all.
    """
    pieces = [
        one
        for one in repository.choices
        if one.stem == choice.stem and len(one.parts) == 1 and not one.problem
    ]
    if not pieces:
        return None
    key = f"remote-header:{repository.name}:{repository.commit}:{pieces[0].path}".replace(" ", "_")
    try:
        known: GGUFInfo | str | None = cache.get(key)
    except RedisError:
        known = None
    if known is None:
        known = _read(repository, pieces[0]) or _UNKNOWN
        with suppress(RedisError):
            # A hub that was slow or away may be neither in a minute.
            cache.set(key, known, 60 if known == _UNKNOWN else _KEPT_S)
    return known if isinstance(known, GGUFInfo) else None


def _read(repository: Repository, choice: Choice) -> GGUFInfo | None:
    # Numpy comes with it; only those who look at a repository need it.
    from models_admin.files.gguf_header import read

    with tempfile.TemporaryDirectory() as folder:
        # The rest of the file is a hole: it takes no room.
        path = Path(folder, "model.gguf")
        try:
            path.write_bytes(_beginning(repository, choice))
            with path.open("r+b") as file:
                file.truncate(choice.size_bytes)
            info = read(path)
        except (httpx.HTTPError, LlamaProjError, GGUFError, OSError):
            return None
    # In a hole keys have no letters: the header is longer than what was fetched.
    return None if "" in info.metadata else info


def _beginning(repository: Repository, choice: Choice) -> bytes:
    url = hub.address(repository.name, repository.commit, choice.path)
    last = min(_BEGINNING_BYTES, choice.size_bytes) - 1
    headers = hub.headers() | {"Range": f"bytes=0-{last}", "Accept-Encoding": "identity"}
    deadline = time.monotonic() + _LIMIT_S
    data = bytearray()
    with (
        transfer.client(Patience(connect=3, silent=3)) as http,
        http.stream("GET", url, headers=headers) as response,
    ):
        if response.status_code not in {200, 206}:
            raise hub.refusal(response.status_code, response.headers, choice.path)
        for piece in response.iter_raw():
            data += piece
            if len(data) > last or time.monotonic() > deadline:
                break
    return bytes(data[: last + 1])
