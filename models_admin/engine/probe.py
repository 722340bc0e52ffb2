"""What a running llama-server says of itself, asked with a short time-out and never raising."""

from dataclasses import dataclass
from enum import Enum
from functools import cache

import httpx

from models_admin.models import Instance

_TIMEOUT_S = 2.0
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
