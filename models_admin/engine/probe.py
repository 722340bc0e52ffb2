"""What a running llama-server says of itself, asked with a short time-out and never raising."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import cache
from uuid import UUID

import httpx

from models_admin.models import Instance
from models_admin.states import InstanceState as S

_TIMEOUT_S = 2.0
_AT_ONCE = 16
_ASKED = frozenset({S.STARTING, S.READY, S.DRAINING, S.UNREACHABLE})
_COUNTED = {
    "llamacpp:prompt_tokens_total": "prompt_tokens",
    "llamacpp:tokens_predicted_total": "predicted_tokens",
    "llamacpp:requests_processing": "busy",
    "llamacpp:requests_deferred": "queued",
}


class Health(Enum):
    """Three answers to "can it work?"."""

    OK = "ok"
    LOADING = "loading"
    SILENT = "silent"


@dataclass(frozen=True)
class Activity:
    """Tokens read and written since the start, slots at work, requests that wait for a slot."""

    prompt_tokens: int
    predicted_tokens: int
    busy: int
    queued: int


@dataclass(frozen=True)
class Look:
    """What was seen of one: its health; what it does, if it is ready; whether it is idle, if it is to end."""

    health: Health
    activity: Activity | None
    is_idle: bool


SILENT = Look(Health.SILENT, None, is_idle=False)


@dataclass(frozen=True)
class Probe:
    """One llama-server's address and key."""

    base_url: str
    api_key: str

    @classmethod
    def of(cls, instance: Instance) -> "Probe":
        """That of an instance."""
        return cls(instance.base_url, instance.api_key)

    def health(self) -> Health:
        """Loading is a healthy state; silence is not."""
        answer = self._get("/health")
        if answer is None:
            return Health.SILENT
        if answer.status_code == httpx.codes.OK:
            return Health.OK
        loading = answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
        return Health.LOADING if loading else Health.SILENT

    def is_idle(self) -> bool:
        """True when it says that no slot is at work."""
        answer = self._get("/slots")
        if answer is None or answer.status_code != httpx.codes.OK:
            return False
        try:
            slots = answer.json()
            return isinstance(slots, list) and not any(slot.get("is_processing") for slot in slots)
        except (ValueError, AttributeError):
            return False

    def activity(self) -> Activity | None:
        """What it is doing and has done since it started. None where it doesn't say."""
        answer = self._get("/metrics")
        if answer is None or answer.status_code != httpx.codes.OK:
            return None
        values = dict.fromkeys(_COUNTED, 0)
        for line in answer.text.splitlines():
            name, _, value = line.partition(" ")
            if name in values:
                try:
                    values[name] = int(float(value))
                except (ValueError, OverflowError):
                    return None
        return Activity(**{field: values[name] for name, field in _COUNTED.items()})

    def _get(self, path: str) -> httpx.Response | None:
        try:
            return _client().get(self.base_url + path, headers={"authorization": f"Bearer {self.api_key}"})
        except httpx.HTTPError:
            return None


def looks_at(instances: Iterable[Instance]) -> dict[UUID, Look]:
    """What each says of itself, asked at the same time: frozen ones cost one time-out together, not one each."""
    asked = [(one.pk, S(one.state), Probe.of(one)) for one in instances if one.port and one.state in _ASKED]
    if not asked:
        return {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(asked)), thread_name_prefix="probe") as threads:
        found = threads.map(lambda one: _look(one[2], one[1]), asked)
        return {pk: look for (pk, _, _), look in zip(asked, found, strict=True)}


def _look(probe: Probe, state: S) -> Look:
    if state == S.DRAINING:
        return Look(Health.SILENT, None, probe.is_idle())
    health = probe.health()
    works = state == S.READY and health is Health.OK
    return Look(health, probe.activity() if works else None, is_idle=False)


@cache
def _client() -> httpx.Client:
    """One for the process; it may be used by several threads."""
    return httpx.Client(
        timeout=_TIMEOUT_S,
        # Neither proxies nor .netrc of the machine concern a server of our own.
        trust_env=False,
        # A server that was replaced on its port must not be asked over an old connection.
        limits=httpx.Limits(max_keepalive_connections=0),
    )
