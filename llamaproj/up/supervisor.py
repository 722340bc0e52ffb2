"""Starts programs, prints their output with their names in front, restarts what dies, stops all in order."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from llamaproj.up.leftovers import Record
from llamaproj.up.program import Program

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
# Who ran this long has recovered: the next pause is the first again.
_STEADY_AFTER_S = 30.0
_LONGEST_LINE = 16 * 1024
_TRIM_EVERY_S = 10.0
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


class Output:
    """Lines with the program's name in front, in the program's colour on a terminal."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream: TextIO | None = stream
        self._coloured = stream.isatty()
        self._colours: dict[str, int] = {}

    def say(self, text: str) -> None:
        """A line of the supervisor itself."""
        self._write(f"{text}\n")

    def line(self, name: str, text: str) -> None:
        """A line that the program `name` wrote."""
        if not self._coloured:
            self._write(f"{name:<9} | {text}\n")
            return
        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        self._write(f"\x1b[{colour}m{name:<9} |\x1b[0m {text}\n")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # the reader of our output has gone; the portal goes on
            self._stream = None


class Child:
    """A program that is kept running."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.process: asyncio.subprocess.Process | None = None
        self.started_at = 0.0
        self.deaths = 0
        self.stop_asked = asyncio.Event()
        self.keeper: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """True while the process exists."""
        return self.process is not None and self.process.returncode is None

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal if there is somebody to receive it."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signum)


class Supervisor:
    """Keeps programs running until they are stopped."""

    def __init__(self, *, record: Record, output: Output) -> None:
        self._record = record
        self._output = output
        self._children: dict[str, Child] = {}
        self._printers: set[asyncio.Task[None]] = set()

    async def start(self, program: Program) -> Child:
        """Start `program` and keep it running."""
        child = Child(program)
        self._children[program.name] = child
        await self._spawn(child)
        child.keeper = asyncio.create_task(self._keep(child), name=f"keep {program.name}")
        return child

    async def stop(self, names: Iterable[str], *, hurry: asyncio.Event) -> None:
        """Stop these programs together; kill those that outlive their grace, or all at once when `hurry` is set."""
        children = [self._children.pop(name) for name in names if name in self._children]
        for child in children:
            child.stop_asked.set()
            child.signal(child.program.stop_signal)
        await asyncio.gather(*(self._end(child, hurry) for child in children))

    async def close(self) -> None:
        """Let go of output that somebody else keeps open."""
        for printer in self._printers:
            printer.cancel()
        await asyncio.gather(*self._printers, return_exceptions=True)

    def names(self) -> list[str]:
        """The programs that are kept running."""
        return list(self._children)

    async def _spawn(self, child: Child) -> None:
        program = child.program
        reader: int | None = None
        if program.log_file:
            writer = program.open_log()
        else:
            reader, writer = os.pipe()
        try:
            child.process = await asyncio.create_subprocess_exec(
                *program.argv, stdout=writer, stderr=writer, **program.popen_options()
            )
        except OSError:
            if reader is not None:
                os.close(reader)
            raise
        finally:
            os.close(writer)
        child.started_at = time.monotonic()
        self._record.add(program.name, child.process.pid)
        if reader is not None:
            printer = asyncio.create_task(self._print(program.name, reader), name=f"print {program.name}")
            self._printers.add(printer)
            printer.add_done_callback(self._printers.discard)

    async def _keep(self, child: Child) -> None:
        """Wait for the end; start again, the later the more often it died."""
        name, pause_s = child.program.name, _FIRST_PAUSE_S
        while child.process is not None:
            status = await self._ended(child.process, child.program)
            self._record.remove(name)
            if child.stop_asked.is_set():
                return
            child.deaths += 1
            if time.monotonic() - child.started_at > _STEADY_AFTER_S:
                pause_s = _FIRST_PAUSE_S
            self._output.line(name, f"{_in_words(status)}; starting again in {pause_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.stop_asked.wait(), pause_s)
                return
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            try:
                await self._spawn(child)
            except OSError as error:
                self._output.line(name, f"can't be started: {error}")
            if child.stop_asked.is_set():
                child.signal(child.program.stop_signal)

    async def _ended(self, process: asyncio.subprocess.Process, program: Program) -> int:
        """The status with which it ends; until then its log is kept short."""
        while True:
            try:
                async with asyncio.timeout(_TRIM_EVERY_S if program.log_file else None):
                    return await process.wait()
            except TimeoutError:
                await asyncio.to_thread(program.trim_log)

    async def _end(self, child: Child, hurry: asyncio.Event) -> None:
        """Wait for the end of a child that was asked to stop."""
        if child.keeper is None:
            return
        impatience = asyncio.create_task(hurry.wait(), name="hurry")
        await asyncio.wait(
            [child.keeper, impatience], timeout=child.program.grace_s, return_when=asyncio.FIRST_COMPLETED
        )
        impatience.cancel()
        if child.is_running:
            self._output.line(child.program.name, "doesn't stop; killed")
            child.signal(signal.SIGKILL)
        await child.keeper

    async def _print(self, name: str, descriptor: int) -> None:
        """Print what comes through the pipe until its last writer closes it."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
        )
        rest = b""
        try:
            while chunk := await reader.read(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LONGEST_LINE:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._output.line(name, line.decode(errors="replace").rstrip("\r"))
            if rest:
                self._output.line(name, rest.decode(errors="replace"))
        finally:
            transport.close()


def _in_words(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def end_of_log(path: Path, lines: int = 5) -> str:
    """The last lines of a program's log, for the message that says it doesn't start."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
