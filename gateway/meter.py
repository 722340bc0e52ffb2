"""What a request took: noted while its answer passes, with as little looking into it as that needs."""

import time
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway import dialect, sse
from gateway.errors import UpstreamLost
from gateway.models import UsageRecord
from llamaproj.errors import LlamaProjError

# Looking through an enumeration's values makes a list of them each time.
_FINISHES = {finish.value: finish for finish in UsageRecord.Finish}


def parse(payload: bytes) -> dict[str, Any]:
    """A chunk or an answer of a model's server. Raises `UpstreamLost` for what can't be one."""
    try:
        chunk = orjson.loads(payload)
    except orjson.JSONDecodeError:
        chunk = None
    if not isinstance(chunk, dict):
        raise UpstreamLost("The model's server answered with garbage.")
    return chunk


@dataclass(slots=True)
class Meter:
    """What a request took, in tokens and milliseconds; filled while it runs."""

    arrived: float = field(default_factory=time.monotonic)
    routed: float | None = None
    first_token: float | None = None
    finish: UsageRecord.Finish = UsageRecord.Finish.CANCELLED
    finish_reason: str = ""
    error: LlamaProjError | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    load_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    # Of replicas lost in mid-answer, whose work went on elsewhere.
    earlier_tokens: int = 0
    _ends: int = 0

    @property
    def queue_ms(self) -> float:
        """From arrival to a replica, without the time in which the model was loaded."""
        return ((self.routed or time.monotonic()) - self.arrived) * 1000 - self.load_ms

    @property
    def first_token_ms(self) -> float | None:
        """From arrival to the first token."""
        return None if self.first_token is None else (self.first_token - self.arrived) * 1000

    def see(self, block: bytes) -> None:
        """Note what streamed events say, parsing only the few that say something. An event counts as a token."""
        tokens = block.count(b"\n\n") - block.endswith(sse.DONE_EVENT)
        if b'"prompt_progress"' in block:
            tokens -= block.count(b'"prompt_progress"')
            if not tokens:
                return
        if self.first_token is None:
            self.first_token = time.monotonic()
            # llama-server begins a chat's answer with an event that has a role and no text.
            tokens -= b'"content":null' in block
        self.completion_tokens += tokens
        if b'"timings"' in block or b'"finish_reason":"' in block or b'"usage":{' in block:
            for payload in sse.payloads(block):
                if payload != sse.DONE:
                    self.see_end(parse(payload))

    def see_end(self, chunk: dict[str, Any]) -> None:
        """Note the finish reason and llama-server's `timings`, of others `usage`: of a last chunk or a whole answer."""
        usage = chunk.get("usage")
        ends = bool(usage)
        response = chunk.get("response")
        if isinstance(response, dict) and isinstance(response.get("usage"), dict):
            ends, usage = True, response["usage"]
            self.finish = UsageRecord.Finish.STOP
        for choice in chunk.get("choices") or ():
            if isinstance(choice, dict) and (reason := choice.get("finish_reason")):
                ends = True
                self.finish_reason = str(reason)
                self.finish = _FINISHES.get(self.finish_reason, UsageRecord.Finish.STOP)
        timings = chunk.get("timings")
        if isinstance(timings, dict):
            self._see_timings(timings, ends=ends)
        elif isinstance(usage, dict):
            self._see_usage(usage)

    def succeed(self) -> None:
        """The answer is complete; not every kind of answer says why it ended."""
        if self.finish == UsageRecord.Finish.CANCELLED:
            self.finish = UsageRecord.Finish.STOP

    def fail(self, error: LlamaProjError) -> None:
        """The answer ended with an error."""
        self.error, self.finish = error, UsageRecord.Finish.ERROR

    def lose(self) -> None:
        """The replica is gone and its answer goes on elsewhere: what it wrote stays counted."""
        self.earlier_tokens = self.completion_tokens
        self._ends = 0

    def _see_timings(self, timings: dict[str, Any], *, ends: bool) -> None:
        """Each choice of several ends with its own; asked for, they come with every token."""
        count = dialect.count
        self.cached_tokens = count(timings.get("cache_n"))
        # What was written before the replica was lost is a part of the prompt now.
        self.prompt_tokens = max(0, self.cached_tokens + count(timings.get("prompt_n")) - self.earlier_tokens)
        before = self.completion_tokens if self._ends else self.earlier_tokens
        self.completion_tokens = before + count(timings.get("predicted_n"))
        self.prefill_ms = _ms(timings.get("prompt_ms"))
        self.decode_ms = max(self.decode_ms, _ms(timings.get("predicted_ms")))
        self._ends += ends

    def _see_usage(self, usage: dict[str, Any]) -> None:
        """Tokens as a server without timings counts them; times by this clock, the way there included."""
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        self.cached_tokens = dialect.count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        self.prompt_tokens = dialect.count(usage.get("prompt_tokens", usage.get("input_tokens")))
        self.completion_tokens = dialect.count(usage.get("completion_tokens", usage.get("output_tokens")))
        if self.first_token is not None and self.routed is not None:
            self.prefill_ms = (self.first_token - self.routed) * 1000
            self.decode_ms = (time.monotonic() - self.first_token) * 1000


def _ms(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
