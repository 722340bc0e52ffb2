"""Writing one answer: from the claimed row to the final text, whatever dies on the way.

The text so far (checkpoint and stream) is sent again as an assistant prefix when a replica or a generator died, so what
a reader saw stays a prefix of the final text.
"""

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from chat.leases import MAX_ATTEMPTS, Job
from chat.relay_writer import LogWriter, Outgoing
from chat.states import MessageStatus
from gateway import admission, completion
from gateway.admission import Caller, Waiting
from gateway.errors import UpstreamLost
from gateway.models import UsageRecord
from llamaproj.errors import LlamaProjError

log = structlog.get_logger(__name__)

# How long an answer waits for its model to load or to come back.
_PATIENCE_S = 300.0
# Answers begun in a row without a new token; each tries several replicas, and waits where all have failed often.
_FRUITLESS_MAX = 3
_PAUSE_S = 0.3
_SPEED_EVERY_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a generation ended: the message's last fields."""

    status: MessageStatus
    fields: dict[str, Any]


@dataclass
class Answer:
    """An answer being written. `text` is everything so far; `stop()` ends it where it is."""

    job: Job
    outgoing: Outgoing
    text: str
    status: MessageStatus = MessageStatus.QUEUED
    began: float = field(default_factory=time.monotonic)
    checkpointed_chars: int = -1
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _last_replica: frozenset[UUID] = frozenset()
    _completion_tokens: int = 0
    _timings: dict[str, float] = field(default_factory=dict)

    def stop(self) -> None:
        """Somebody asked for the end. The text so far is kept."""
        self._stop.set()

    async def write(self, writer: LogWriter) -> Outcome:
        """Generate to the end. Raises nothing but cancellation: errors are an outcome."""
        work = asyncio.create_task(self._generate(writer), name=f"generate-{self.job.generation}")
        stopped = asyncio.create_task(self._stop.wait(), name=f"stop-{self.job.generation}")
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                # What was written until now is counted as the stream is left.
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                return self._outcome(MessageStatus.STOPPED)
            finish_reason = work.result()
            note = _CUT_OFF if finish_reason == UsageRecord.Finish.LENGTH else ""
            return self._outcome(MessageStatus.DONE, error=note)
        except LlamaProjError as error:
            return self._outcome(MessageStatus.FAILED, error=error.message)
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)

    def _outcome(self, status: MessageStatus, error: str = "") -> Outcome:
        total_ms = (time.monotonic() - self.began) * 1000
        return Outcome(
            status,
            {
                "text": self.text,
                "error": error,
                "completion_tokens": self._completion_tokens or None,
                "prompt_tokens": int(self._timings.pop("prompt_tokens", 0)) or None,
                "timings": {name: round(value, 1) for name, value in self._timings.items()}
                | {"total_ms": round(total_ms, 1)},
            },
        )

    async def _generate(self, writer: LogWriter) -> str:
        """Stream from replica after replica until one says how the answer ends; returns the finish reason."""
        served = self.job.served
        if served is None:
            raise LlamaProjError("The model of this chat was removed. Choose another one.")
        if self.job.attempts > MAX_ATTEMPTS:
            raise LlamaProjError("This answer failed too often. Retry it, or choose another model.")
        fruitless = 0
        while True:
            before = len(self.text)
            if before and served.external_id is not None:
                # Only llama-server is known to go on after an assistant's words; another might begin anew.
                raise UpstreamLost(_INTERRUPTED)
            try:
                return await self._stream_once(writer)
            except UpstreamLost as error:
                fruitless = 0 if len(self.text) > before else fruitless + 1
                log.warning(
                    "replica lost in mid-answer", generation=str(self.job.generation), reason=error.message
                )
                if fruitless >= _FRUITLESS_MAX:
                    raise
                await asyncio.sleep(_PAUSE_S)

    async def _stream_once(self, writer: LogWriter) -> str:
        assert self.job.served is not None
        messages = list(self.job.history)
        if self.text:
            messages.append({"role": "assistant", "content": self.text})
        call = completion.Call(
            await self._caller(),
            self.job.served.slug,
            door=UsageRecord.Door.CHAT,
            body=self._body(messages),
            patience_s=_PATIENCE_S,
            avoid=self._last_replica,
            thread=str(self.job.conversation),
            on_wait=partial(self._tell_waiting, writer),
        )
        async with completion.run(call) as stream:
            self._last_replica = frozenset({stream.replica.pk})
            heard, told_at = _Heard(), 0.0
            try:
                async for payload in stream.payloads():
                    chunk = completion.parse(payload)
                    if progress := chunk.get("prompt_progress"):
                        heard.prompt_tokens = progress.get("total", 0)
                        self._tell(writer, MessageStatus.READING, f"reading prompt {_percent(progress)} %")
                        continue
                    piece = _content(chunk)
                    if not piece:
                        continue
                    now = time.monotonic()
                    heard.token(now)
                    self.text += piece
                    if now - told_at >= _SPEED_EVERY_S:
                        told_at = now
                        speed = heard.tokens_per_second
                        self._tell(
                            writer, MessageStatus.WRITING, f"{speed:.0f} tokens/s" if speed else "writing"
                        )
                    writer.write(self.outgoing, piece)
            finally:
                self._account(stream.meter, heard)
            return stream.meter.finish_reason

    async def _caller(self) -> Caller:
        """Whose limits hold. Raises `NotAuthenticated` for a person or a key that may ask no more."""
        if self.job.api_key_pk is not None:
            return await admission.caller_of_key(self.job.api_key_pk)
        return await admission.caller_of_user(self.job.owner.pk)

    def _body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """The request; what earlier replicas wrote counts against the longest answer."""
        body: dict[str, Any] = {
            "messages": messages,
            "stream": True,
            "return_progress": True,
            "cache_prompt": True,
        }
        if self.job.served and self.job.served.answer_tokens:
            body["max_tokens"] = max(1, self.job.served.answer_tokens - self._completion_tokens)
        return body

    def _account(self, meter: completion.Meter, heard: "_Heard") -> None:
        """Add what one stream took to what earlier ones took. One that was left early has said no figures."""
        self._completion_tokens += meter.completion_tokens if meter.decode_ms else heard.tokens
        timings = self._timings
        timings["queue_ms"] = timings.get("queue_ms", 0.0) + meter.queue_ms
        timings["prefill_ms"] = timings.get("prefill_ms", 0.0) + meter.prefill_ms
        timings["decode_ms"] = timings.get("decode_ms", 0.0) + (meter.decode_ms or heard.decode_ms)
        # Those of the first stream that says them; one lost early says nothing.
        timings["first_token_ms"] = timings.get("first_token_ms") or meter.first_token_ms or 0.0
        timings["prompt_tokens"] = timings.get("prompt_tokens") or meter.prompt_tokens or heard.prompt_tokens
        if meter.decode_ms:
            timings["tokens_per_second"] = meter.completion_tokens / meter.decode_ms * 1000
        elif heard.decode_ms:
            timings["tokens_per_second"] = heard.tokens_per_second

    def _tell_waiting(self, writer: LogWriter, waiting: Waiting) -> None:
        """A place in the line, or how far the model is loaded."""
        status = MessageStatus.LOADING if waiting.place is None else MessageStatus.QUEUED
        self._tell(writer, status, waiting.word)

    def _tell(self, writer: LogWriter, status: MessageStatus, progress: str) -> None:
        self.status = status
        writer.tell(self.outgoing, status, progress)


@dataclass
class _Heard:
    """What can be told of a stream from outside, before it says so itself at its end."""

    tokens: int = 0
    prompt_tokens: int = 0
    first_at: float = 0.0
    last_at: float = 0.0

    def token(self, now: float) -> None:
        self.tokens += 1
        self.first_at = self.first_at or now
        self.last_at = now

    @property
    def decode_ms(self) -> float:
        return (self.last_at - self.first_at) * 1000

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens - 1) / self.decode_ms * 1000 if self.decode_ms else 0.0


_INTERRUPTED = "The model's server was lost in mid-answer, and it can't go on where it stopped. Ask again."
_CUT_OFF = "The longest answer this model may give was reached; ask it to go on."


def _content(chunk: dict[str, Any]) -> str:
    choices = chunk.get("choices")
    if not choices:
        return ""
    # PostgreSQL's text can't hold NUL.
    return (choices[0].get("delta", {}).get("content") or "").replace("\0", "\ufffd")


def _percent(progress: dict[str, Any]) -> int:
    """llama-server's `prompt_progress` as a share of what isn't cached."""
    todo = progress.get("total", 0) - progress.get("cache", 0)
    done = progress.get("processed", 0) - progress.get("cache", 0)
    return max(0, min(100, round(100 * done / todo))) if todo > 0 else 100
