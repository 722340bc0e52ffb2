"""A model hub on a real port, as far as the portal talks to it, that does what a test tells it to.

    with HubServer() as hub:
        hub.put("owner/name", "model-Q4_0.gguf", data)
        hub.scripts.append(Script(cut_after=1000))      # for the next request for bytes
        hub.endpoint, hub.requests

As the hub does: `/api/models` (search), `/api/models/<name>/revision/<revision>` (files with their LFS checksums),
`/<name>/resolve/<commit>/<path>` with X-Repo-Commit and X-Linked-Etag, which leads to storage on another host, where
ranges are answered. A commit is the digest of what it holds, and old ones stay.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

_PIECE = 16_384


@dataclass(frozen=True)
class Script:
    """How one answer with bytes behaves. Counts are bytes of that answer."""

    cut_after: int | None = None  # close in mid-file
    stall_after: int | None = None  # nothing comes any more, until the client goes away
    status: int = 200  # an error instead
    retry_after: int | None = None
    no_ranges: bool = False  # the whole file, whatever was asked for
    wrong: bool = False  # other bytes of the same length
    bytes_per_s: int = 0  # slowly


@dataclass
class Repo:
    """One repository: its files at each commit."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = ""
    gated: bool = False
    downloads: int = 10


class HubServer:
    """The hub and its storage."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.scripts: list[Script] = []
        self.every: Script | None = None
        self.api_status = 0  # an error for all of the API
        self.api_stalls = False
        self.token = "hf_right"
        # (path, range header, authorization) of every request for bytes, and how many bytes were sent for each.
        self.requests: list[tuple[str, str, str]] = []
        self.sent: list[int] = []
        self.api_requests: list[str] = []
        self._lfs: dict[str, bytes] = {}
        self._over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Door)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage(self) -> str:
        """Another host by name, as the hub's storage is."""
        return f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, name: str, path: str, data: bytes, *, gated: bool = False) -> str:
        """Add or replace a file; the new commit."""
        repo = self.repos.setdefault(name, Repo())
        repo.gated = repo.gated or gated
        files = {**repo.commits.get(repo.head, {}), path: data}
        known = sorted((path, _digests(data)[0]) for path, data in files.items())
        repo.head = hashlib.sha1(json.dumps(known).encode(), usedforsecurity=False).hexdigest()
        repo.commits[repo.head] = files
        self._lfs[_digests(data)[0]] = data
        return repo.head


@cache
def _digests(data: bytes) -> tuple[str, str]:
    """SHA-256, and the name git gives it."""
    git = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
    git.update(data)
    return hashlib.sha256(data).hexdigest(), git.hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in mid-answer is what many tests are about."""


class _Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        path = unquote(url.path)
        if path.startswith("/api/"):
            hub.api_requests.append(self.path)
            if hub.api_stalls:
                hub._over.wait(30)
            elif hub.api_status:
                self._json({"error": "no"}, hub.api_status)
            elif path == "/api/models":
                self._search(parse_qs(url.query))
            else:
                self._revision(path)
        elif path.startswith("/storage/"):
            self._bytes(hub._lfs[path.removeprefix("/storage/")])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        else:
            self._json({"error": "Not Found"}, 404)

    def _search(self, query: dict[str, list[str]]) -> None:
        assert query.get("filter") == ["gguf"], query
        words = query.get("search", [""])[0].lower()
        found = [(name, repo) for name, repo in self.server.hub.repos.items() if words in name.lower()]
        found.sort(key=lambda one: -one[1].downloads)
        self._json([self._about(name, repo) for name, repo in found[: int(query["limit"][0])]])

    def _about(self, name: str, repo: Repo) -> dict[str, Any]:
        about = {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": repo.head,
            "downloads": repo.downloads,
            "likes": 3,
        }
        about |= {"gated": "auto" if repo.gated else False, "private": False, "tags": ["gguf"]}
        return about | {"createdAt": "2026-01-02T03:04:05.000Z", "lastModified": "2026-02-03T04:05:06.000Z"}

    def _revision(self, path: str) -> None:
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?", path)
        repo = self.server.hub.repos.get(match[1]) if match else None
        if match is None or repo is None:
            # As the hub does, lest one could ask for what is private.
            self._json({"error": "Invalid username or password."}, 401)
            return
        commit = repo.head if match[2] in {None, "main"} else match[2]
        if commit not in repo.commits:
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for name, data in repo.commits[commit].items():
            sha256, blob = _digests(data)
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            if len(data) >= 1000:
                sibling["lfs"] = {
                    "sha256": sha256,
                    "size": len(data),
                    "pointerSize": 134,
                }
            siblings.append(sibling)
        self._json(self._about(match[1], repo) | {"sha": commit, "siblings": siblings})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.server.hub.repos.get(name)
        if repo is None:
            self._json({"error": "Invalid username or password."}, 401)
            return
        if repo.gated and self.headers.get("Authorization") != f"Bearer {self.server.hub.token}":
            self._json({"error": "Access to model is restricted."}, 401, {"X-Error-Code": "GatedRepo"})
            return
        commit = repo.head if revision == "main" else revision
        data = repo.commits.get(commit, {}).get(path)
        if data is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        if len(data) < 1000:
            self._bytes(data, {"X-Repo-Commit": commit})
            return
        digest = _digests(data)[0]
        linked = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        where = f"{self.server.hub.storage}/storage/{digest}?name={quote(path)}"
        self._send(302, b"", {**linked, "Location": where})

    def _bytes(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        hub = self.server.hub
        asked = self.headers.get("Range", "")
        hub.requests.append((self.path, asked, self.headers.get("Authorization", "")))
        number = len(hub.sent)
        hub.sent.append(0)
        script = hub.scripts.pop(0) if hub.scripts else hub.every or Script()
        if script.status != 200:
            wait = {"Retry-After": str(script.retry_after)} if script.retry_after is not None else {}
            self._json({"error": "no"}, script.status, wait)
            return
        if script.wrong:
            data = bytes(byte ^ 255 for byte in data[:64]) + data[64:]
        begin, end = 0, len(data)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        ranged = match is not None and not script.no_ranges
        if match and ranged:
            begin, end = int(match[1]), min(end, int(match[2] or end) + 1)
            if begin >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
        self.send_response(206 if ranged else 200)
        for key, value in {"ETag": '"of-the-storage"', "Accept-Ranges": "bytes", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(end - begin))
        if ranged:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.end_headers()
        self._pour(data[begin:end], script, number)

    def _pour(self, data: bytes, script: Script, number: int) -> None:
        hub = self.server.hub
        limits = [limit for limit in (script.cut_after, script.stall_after) if limit is not None]
        limit = min([len(data), *limits])
        piece = min(_PIECE, max(1, script.bytes_per_s // 20)) if script.bytes_per_s else _PIECE
        for at in range(0, limit, piece):
            part = data[at : min(at + piece, limit)]
            self.wfile.write(part)
            hub.sent[number] += len(part)
            if script.bytes_per_s:
                hub._over.wait(len(part) / script.bytes_per_s)
        self.wfile.flush()
        if script.stall_after is not None:
            hub._over.wait(30)
        if limit < len(data):
            self.close_connection = True

    def _json(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
