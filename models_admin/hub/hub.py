"""The model hub: what it has, in the portal's words.

    found = hub.search("smollm2")
    repository = hub.look("owner/name")
    repository.choices[0].label, .size_bytes, .parts

Metadata comes through `huggingface_hub`. Bytes don't: its downloader keeps no more than a progress bar, can be stopped
between two pieces of 10 MB only, waits in `sleep`, asks again and again while a page is waiting, and checks no
checksum. They come over the hub's documented address `/<repository>/resolve/<commit>/<path>` through
`models_admin.hub.transfer`.

Raises `HubUnreachable`, `HubRefused`, `NotOnHub` and `InvalidInput`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from llamaproj import env
from llamaproj.errors import InvalidInput, LlamaProjError
from models_admin.errors import HubRefused, HubUnreachable, NotOnHub

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TIMEOUT_S = 8.0
_MOST_FOUND = 30
_MAX_PATH = 400
_MAX_PARTS = 1000
# As the hub itself has it: huggingface_hub.utils.validate_repo_id, but with an owner.
_REPOSITORY = re.compile(r"(?=.{3,96}$)\w[\w.-]*\w?/\w(?:[\w.-]*\w)?", re.ASCII)
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_QUANTIZATION = re.compile(
    r"(?:^|[-_.])((?:UD-)?(?:I?Q\d(?:_[0-9A-Z]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32|FP16|FP32))$",
    re.IGNORECASE,
)
# What people take a projector in, the best first.
_PROJECTORS = ("F16", "BF16", "Q8_0", "F32")


@dataclass(frozen=True)
class Found:
    """One repository among a search's results."""

    name: str
    downloads: int
    likes: int
    changed_at: datetime | None
    gated: bool


@dataclass(frozen=True)
class Part:
    """One file. `sha256` is empty for a small one that the hub keeps in git; `git_sha1` is its name there."""

    path: str
    size_bytes: int
    sha256: str
    git_sha1: str


@dataclass(frozen=True)
class Choice:
    """One model in one quantisation: one file, or all parts of a split one.

    `stem` is the model's name, the same for all its quantisations; `problem` says why it can't be had.
    """

    label: str
    stem: str
    parts: tuple[Part, ...]
    problem: str = ""

    @property
    def path(self) -> str:
        """What names it: its first file."""
        return self.parts[0].path

    @property
    def size_bytes(self) -> int:
        """All parts together."""
        return sum(part.size_bytes for part in self.parts)


@dataclass(frozen=True)
class Repository:
    """A repository at one commit: its models, and the projectors that go with them."""

    name: str
    commit: str
    gated: bool
    choices: tuple[Choice, ...]
    projectors: tuple[Choice, ...]

    def choice(self, path: str) -> Choice:
        """The model that begins with this file, or the projector. Raises `NotOnHub` or `HubRefused`."""
        for choice in (*self.choices, *self.projectors):
            if choice.path == path:
                if choice.problem:
                    raise HubRefused(choice.problem)
                return choice
        raise NotOnHub(f"{self.name} has no GGUF file {path}.")

    @property
    def projector(self) -> Choice | None:
        """The projector most people take."""
        return self.projectors[0] if self.projectors else None


def search(text: str) -> list[Found]:
    """Repositories with GGUF files, those most often downloaded first."""
    _prepare()
    models = _api().list_models(filter="gguf", search=text.strip(), sort="downloads", limit=_MOST_FOUND)
    return [
        Found(
            name=model.id,
            downloads=model.downloads or 0,
            likes=model.likes or 0,
            changed_at=model.last_modified or model.created_at,
            gated=bool(model.gated),
        )
        for model in _asked(lambda: list(models), "The search")
        if _REPOSITORY.fullmatch(model.id)
    ]


def look(name: str, revision: str = "main") -> Repository:
    """A repository's GGUF files, with the commit at which they are what they are."""
    check_repository(name)
    _prepare()
    info = _asked(
        lambda: _api().model_info(name, revision=revision, files_metadata=True, timeout=_TIMEOUT_S), name
    )
    parts = [
        Part(
            path=sibling.rfilename,
            size_bytes=sibling.size,
            sha256=sibling.lfs.sha256 if sibling.lfs else "",
            git_sha1=sibling.blob_id or "",
        )
        for sibling in info.siblings or []
        if sibling.size is not None and is_good_path(sibling.rfilename)
    ]
    choices = _grouped(parts)
    return Repository(
        name=name,
        commit=info.sha or revision,
        gated=bool(info.gated),
        choices=tuple(sorted((one for one in choices if not _is_projector(one)), key=_by_size)),
        projectors=tuple(sorted((one for one in choices if _is_projector(one)), key=_by_use)),
    )


def check_repository(name: str) -> None:
    """Raise `InvalidInput` for what can't be a repository's name."""
    if not _REPOSITORY.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise InvalidInput(f"A repository is named owner/name; {_short(name)} is not.", param="repository")


def is_good_path(path: str) -> bool:
    """True for a GGUF file's path that means the same on every file system: no way up, nothing hidden, no odd signs."""
    return (
        path.lower().endswith(".gguf")
        and len(path.encode(errors="replace")) <= _MAX_PATH
        and path.isprintable()
        and not set(path) & set('\\:*?"<>|')
        and all(
            segment and not segment.startswith(".") and segment.strip() == segment
            for segment in path.split("/")
        )
    )


def address(repository: str, commit: str, path: str) -> str:
    """Where the bytes are."""
    return f"{env.HF_ENDPOINT}/{quote(repository)}/resolve/{quote(commit, safe='')}/{quote(path)}"


def page(repository: str) -> str:
    """Where people read about the repository."""
    return f"{env.HF_ENDPOINT}/{quote(repository)}"


def headers() -> dict[str, str]:
    """What requests for bytes carry: our name, and the token if there is one."""
    who = {"User-Agent": "llamaproj"}
    return who | ({"Authorization": f"Bearer {env.HF_TOKEN}"} if env.HF_TOKEN else {})


def refusal(status: int, headers: Mapping[str, str], what: str) -> LlamaProjError:
    """The hub's answer as an error with a sentence. `what` names the thing that was asked for."""
    wait = headers.get("retry-after", "")
    retry_after = float(wait) if wait.isdecimal() else None
    if headers.get("x-error-code") == "GatedRepo" or status == 403:
        return HubRefused(
            f"{what} is only for people who accepted its terms. Accept them on the hub, then set HF_TOKEN to a token "
            "of that account and start the portal again."
        )
    if status == 401:
        # The hub says so of what is private, and of what doesn't exist.
        said = "and doesn't accept our HF_TOKEN" if env.HF_TOKEN else "or it needs a token: set HF_TOKEN"
        return HubRefused(f"The hub has no {what} {said}.")
    if status == 404:
        return NotOnHub(f"The hub has no {what}.")
    if status == 429:
        when = f"in {wait} s" if retry_after else "later"
        return HubUnreachable(
            f"The hub wants fewer requests from here; try again {when}.", retry_after=retry_after
        )
    if status >= 500 or status == 408:
        return HubUnreachable(
            f"The hub has trouble of its own (status {status}); try again later.", retry_after=retry_after
        )
    return HubRefused(f"The hub refused {what} (status {status}).")


def unreachable(reason: object) -> HubUnreachable:
    """The error for a hub that gives no answer at all."""
    host = urlsplit(env.HF_ENDPOINT).hostname
    words = re.sub(r"^\[Errno -?\d+\] ", "", str(reason)) or "no answer"
    return HubUnreachable(f"The hub {host} can't be reached from here ({_short(words)}).")


def _asked(question: Any, what: str) -> Any:
    """Ask through huggingface_hub; its many errors become ours."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return question()
    except HfHubHTTPError as error:
        raise refusal(error.response.status_code, error.response.headers, what) from None
    except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
        raise unreachable(error) from None
    except HFValidationError as error:
        raise InvalidInput(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise HubUnreachable("The hub gave an answer that can't be understood.") from None


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    # Without the `or False` it would look for a token in somebody's home folder.
    return HfApi(endpoint=env.HF_ENDPOINT, token=env.HF_TOKEN or False, library_name="llamaproj")


@cache
def _prepare() -> None:
    """Have huggingface_hub ask once, and not for long: by itself it waits without end, and half a minute longer."""
    import httpx2
    from huggingface_hub import set_client_factory

    class Client(httpx2.Client):
        def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            request.extensions["timeout"] = httpx2.Timeout(_TIMEOUT_S).as_dict()
            try:
                response = super().send(request, **options)
            except httpx2.TransportError as error:
                raise unreachable(error) from None
            if response.status_code in {408, 429} or response.status_code >= 500:
                raise refusal(response.status_code, response.headers, "answer")
            return response

    set_client_factory(lambda: Client(follow_redirects=True))


def _grouped(parts: Iterable[Part]) -> list[Choice]:
    """Files that are one model together."""
    sets: dict[tuple[str, int], dict[int, Part]] = defaultdict(dict)
    choices: list[Choice] = []
    for part in parts:
        match = _PART.search(part.path)
        if match:
            sets[part.path[: match.start()], int(match[2])][int(match[1])] = part
        else:
            choices.append(_choice(part.path[: -len(".gguf")], (part,)))
    for (stem, count), members in sets.items():
        ordered = tuple(members[number] for number in sorted(members))
        missing = [number for number in range(1, min(count, _MAX_PARTS) + 1) if number not in members]
        problem = f"Part {missing[0]} of {count} is missing on the hub." if missing else ""
        if count > _MAX_PARTS or set(members) - set(range(1, count + 1)):
            problem = "Its parts are numbered in a way that makes no sense."
        choices.append(_choice(stem, ordered, problem))
    return [one for one in choices if "imatrix" not in one.stem.lower()]


def _choice(stem: str, parts: tuple[Part, ...], problem: str = "") -> Choice:
    name = stem.rsplit("/", 1)[-1]
    match = _QUANTIZATION.search(name)
    label = match[1].upper() if match else ""
    return Choice(label=label, stem=name[: match.start()] if match else name, parts=parts, problem=problem)


def _is_projector(choice: Choice) -> bool:
    return "mmproj" in choice.path.rsplit("/", 1)[-1].lower()


def _by_size(choice: Choice) -> tuple[int, str]:
    return choice.size_bytes, choice.path


def _by_use(choice: Choice) -> tuple[int, str]:
    known = choice.label in _PROJECTORS
    return (_PROJECTORS.index(choice.label) if known else len(_PROJECTORS)), choice.path


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:119] + "…"
