"""What each llama-server says of itself: `/metrics` and `/slots`, with the counters turned into rates.

A server answers between two batches, so one that reads a long prompt may take seconds. It is asked in the background,
never twice at a time; a sample waits for it for half a second and else takes what it said last.

llama-server counts an answer's tokens when the answer ends. What its slots are writing now is added here, so that the
rate is that of the tokens and not that of the answers.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from models_admin.engine import slots as listing
from models_admin.engine.slots import Slot, number, written_tokens

logger = logging.getLogger(__name__)

_PATIENCE_S = 0.5
_TIMEOUT_S = 3.0
# Older news of a server than this is no news.
_STALE_S = 8.0
_LARGEST_ANSWER_BYTES = 2_000_000
_PARALLEL = 16


@dataclass(frozen=True, slots=True)
class Target:
    """A llama-server to ask."""

    key: str
    base_url: str
    api_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said. None: it didn't."""

    at: float
    metrics: dict[str, float] | None
    slots: list[dict[str, Any]] | None


@dataclass(frozen=True, slots=True)
class EngineReading:
    """A llama-server at one moment. None: not known (yet)."""

    generated_tokens_s: float | None = None
    prompt_tokens_s: float | None = None
    requests_processing: int | None = None
    requests_deferred: int | None = None
    slots: int | None = None
    slots_busy: int | None = None
    context_used_tokens: int | None = None
    context_tokens: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    each_slot: list[Slot] | None = None


class EngineWatch:
    """Asks llama-servers and remembers what they said before. Threads may share it."""

    def __init__(
        self,
        *,
        fetch: "Callable[[Target], Answer] | None" = None,
        patience_s: float = _PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch or Fetcher(clock)
        self._patience_s = patience_s
        self._clock = clock
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="engine-metrics")
        self._watched: dict[str, _Watched] = {}

    def ask(self, targets: Iterable[Target]) -> "list[Future[Answer]]":
        """Begin to ask each server that isn't still being asked. Servers no longer named are forgotten."""
        asked = []
        with self._lock:
            wanted = {target.key: target for target in targets}
            self._watched = {key: self._watched.get(key) or _Watched() for key in wanted}
            for key, watched in self._watched.items():
                if watched.future is None:
                    watched.future = self._pool.submit(self._fetch, wanted[key])
                    asked.append(watched.future)
        return asked

    def collect(self, asked: "list[Future[Answer]]") -> dict[str, EngineReading]:
        """What is known of each server, after waiting a little for those just asked."""
        wait(asked, timeout=self._patience_s)
        readings = {}
        with self._lock:
            for key, watched in self._watched.items():
                watched.take()
                if watched.answered_at is not None and self._clock() - watched.answered_at <= _STALE_S:
                    readings[key] = watched.reading
        return readings


@dataclass(slots=True)
class _Watched:
    """One server: the question on its way, and what the last answers come to."""

    future: "Future[Answer] | None" = None
    reading: EngineReading = field(default_factory=EngineReading)
    answered_at: float | None = None
    counters: "_Counters | None" = None

    def take(self) -> None:
        """Learn from the answer, if it has come."""
        if self.future is None or not self.future.done():
            return
        future, self.future = self.future, None
        if error := future.exception():
            logger.error("A llama-server's answer could not be read", exc_info=error)
            return
        answer = future.result()
        if answer.metrics is None and answer.slots is None:
            return
        counters = _count(answer)
        rates = _rates(self.counters, counters) if counters else (None, None)
        self.counters = counters and counters.not_behind(self.counters)
        self.answered_at = answer.at
        self.reading = _reading(answer, *rates)


@dataclass(frozen=True, slots=True)
class _Counters:
    at: float
    counted: float  # what the server itself counts: smaller than before after a restart only
    generated: float
    prompt: float

    def not_behind(self, before: "_Counters | None") -> "_Counters":
        """These, but for tokens seen in a slot that ended between the two questions: they stay counted."""
        if before is None or self.counted < before.counted:
            return self
        return _Counters(
            self.at, self.counted, max(self.generated, before.generated), max(self.prompt, before.prompt)
        )


def _count(answer: Answer) -> _Counters | None:
    if answer.metrics is None or "tokens_predicted_total" not in answer.metrics:
        return None
    counted = answer.metrics["tokens_predicted_total"]
    prompt = answer.metrics.get("prompt_tokens_total", 0.0)
    writing = reading = 0
    for slot in _busy(answer.slots):
        decoded = written_tokens(slot)
        writing += decoded
        if not decoded:
            reading += number(slot, "n_prompt_tokens_processed")
    return _Counters(answer.at, counted, counted + writing, prompt + reading)


def _rates(before: _Counters | None, now: _Counters) -> tuple[float | None, float | None]:
    """Generated and prompt tokens a second; unknown at first and after a restart of the server."""
    if before is None or now.counted < before.counted or now.at <= before.at:
        return None, None
    seconds = now.at - before.at
    return (
        max(0.0, now.generated - before.generated) / seconds,
        max(0.0, now.prompt - before.prompt) / seconds,
    )


def _reading(answer: Answer, generated: float | None, prompt: float | None) -> EngineReading:
    metrics = answer.metrics or {}
    busy = _busy(answer.slots)
    processing = metrics.get("requests_processing")
    deferred = metrics.get("requests_deferred")
    known = answer.slots is not None
    return EngineReading(
        generated_tokens_s=generated,
        prompt_tokens_s=prompt,
        requests_processing=None if processing is None else int(processing),
        requests_deferred=None if deferred is None else int(deferred),
        slots=len(answer.slots or []) if known else None,
        slots_busy=len(busy) if known else None,
        context_used_tokens=sum(number(slot, "n_prompt_tokens") for slot in busy) if known else None,
        context_tokens=sum(number(slot, "n_ctx") for slot in answer.slots or []) if known else None,
        metrics=metrics,
        each_slot=listing.of(answer.slots) if answer.slots is not None else None,
    )


def _busy(slots: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    return [slot for slot in slots or [] if slot.get("is_processing")]


class Fetcher:
    """Asks one llama-server over HTTP. Callable from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # An idle kept-alive connection would hold one of llama-server's few HTTP threads, which chats need.
        self._client = httpx.Client(
            timeout=_TIMEOUT_S,
            trust_env=False,
            headers={"connection": "close"},
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def __call__(self, target: Target) -> Answer:
        """Its metrics and slots, as far as it gives them; never raises."""
        # Metrics first: an answer ending in between is then missed for a moment rather than counted twice.
        text = self._get(target, "/metrics")
        at = self._clock()
        slots = self._get(target, "/slots")
        return Answer(
            at, None if text is None else parse_metrics(text), None if slots is None else parse_slots(slots)
        )

    def _get(self, target: Target, path: str) -> str | None:
        """The body of a 200, given that it's finished in time and of sane size."""
        until = self._clock() + _TIMEOUT_S
        body = bytearray()
        headers = {"authorization": f"Bearer {target.api_key}"} if target.api_key else {}
        try:
            with self._client.stream("GET", target.base_url + path, headers=headers) as response:
                if response.status_code != httpx.codes.OK:
                    return None
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > _LARGEST_ANSWER_BYTES or self._clock() > until:
                        return None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            logger.debug("%s%s: %s", target.base_url, path, error)
            return None
        return body.decode(errors="replace")


def parse_metrics(text: str) -> dict[str, float] | None:
    """The values of llama.cpp's own metrics, without their prefix; None for what isn't Prometheus text."""
    # Without the types: the parser would append "_total" to counters that are not called so.
    samples = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    try:
        return {
            sample.name.removeprefix("llamacpp:"): float(sample.value)
            for family in text_string_to_metric_families(samples)
            for sample in family.samples
            if sample.name.startswith("llamacpp:") and math.isfinite(sample.value)
        }
    except (ValueError, KeyError, IndexError):  # the parser raises whichever of these it falls over
        return None


def parse_slots(text: str) -> list[dict[str, Any]] | None:
    """The slots as llama-server lists them; None for anything else."""
    try:
        slots = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
        return None
    return slots
