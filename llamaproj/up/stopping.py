"""A run from its start to Ctrl-C, SIGTERM or SIGHUP, whichever way it goes."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

# A terminal and `make` may both pass on one Ctrl-C.
_SECOND_SIGNAL_AFTER_S = 1.0


class StopSignals:
    """The first signal asks to stop, a later one to hurry."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self._asked_at = 0.0

    def listen(self) -> None:
        """Take the signals of this process. Call it where its event loop runs."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(signum, self._on_signal)

    def _on_signal(self) -> None:
        now = time.monotonic()
        if not self.asked.is_set():
            self._asked_at = now
            self.asked.set()
        elif now - self._asked_at > _SECOND_SIGNAL_AFTER_S:
            self.hurry.set()


async def run(
    start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]], signals: StopSignals
) -> None:
    """Start, wait for a signal, stop. What `start` raises is raised after stopping."""
    signals.listen()
    starting = asyncio.ensure_future(start())
    asked = asyncio.create_task(signals.asked.wait(), name="stop asked")
    try:
        await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await asked
    finally:
        for task in (starting, asked):
            task.cancel()
        await asyncio.gather(starting, asked, return_exceptions=True)
        await stop()
