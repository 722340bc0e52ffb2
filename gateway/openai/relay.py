"""An answer on its way to the client: whole, or event by event as it comes."""

import asyncio

from gateway import completion, sse
from gateway.admission import Waiting
from gateway.openai.exchange import Exchange
from gateway.openai.headers import Headers

# Who waits longer than this is told what for; said again so often, so that no proxy takes the silence for an end.
_SILENT_S = 1.0
_REPEAT_S = 10.0


async def whole(exchange: Exchange, call: completion.Call) -> None:
    """The answer in one piece, however long that takes."""
    async with completion.run(call) as stream:
        await exchange.answer(stream.whole(), _headers(stream))


async def streamed(exchange: Exchange, call: completion.Call, patience: "Patience") -> None:
    """The answer's events, untouched, each as it comes; the client's pace is the pace of reading."""
    patience.begin()
    try:
        async with completion.run(call) as stream:
            await patience.end()
            if not exchange.status:
                await exchange.begin_stream(_headers(stream))
            write = exchange.write
            async for block in stream.blocks():
                await write(block)
            exchange.is_over = True
        # Who has seen the end may ask again at once: by then nothing of this request is held any more.
        await exchange.end()
    finally:
        await patience.end()


def _headers(stream: completion.Stream) -> Headers:
    return [
        (b"x-llamaproj-instance", str(stream.replica.pk).encode()),
        (b"x-llamaproj-queue-ms", b"%.1f" % stream.meter.queue_ms),
        *stream.headers,
    ]


class Patience:
    """Tells a client that waits for the first event what it waits for, in comments that programs pass over."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._word = "waiting"
        self._news = asyncio.Event()
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None

    def hear(self, waiting: Waiting) -> None:
        """Something has changed for who waits."""
        self._word = waiting.word
        self._news.set()

    def begin(self) -> None:
        """The client waits from now on."""
        self._timer = asyncio.get_running_loop().call_later(_SILENT_S, self._tell)

    async def end(self) -> None:
        """The waiting is over. Ending twice is ending once."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._telling is not None:
            self._news.set()
            telling, self._telling = self._telling, None
            await telling

    def _tell(self) -> None:
        self._telling = asyncio.create_task(self._tell_on(), name=f"patience-{self._exchange.request_id}")

    async def _tell_on(self) -> None:
        await self._exchange.begin_stream([])
        while not self._is_over:
            self._news.clear()
            await self._exchange.write(sse.comment(self._word))
            try:
                async with asyncio.timeout(_REPEAT_S):
                    await self._news.wait()
            except TimeoutError:
                pass
