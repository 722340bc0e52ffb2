"""The lean client of our own servers, against a server that misbehaves on command."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from gateway import wire

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Server:
    """Counts its connections and its questions; what it answers is up to the test."""

    def __init__(self) -> None:
        self.connections = self.questions = 0
        self.gone = asyncio.Event()
        self.serve: Serve

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))
                self.questions += 1
                await self.serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    yield server, f"http://127.0.0.1:{port}/v1/completions"
    await wire.close_idle()
    listening.close()
    await listening.wait_closed()


async def ask(url: str, silence_s: float = 5.0) -> wire.Answer:
    return await wire.post(url, b"{}", "Bearer key", silence_s)


async def all_of(answer: wire.Answer) -> bytes:
    found = []
    while data := await answer.readany():
        found.append(data)
    return b"".join(found)


async def test_a_connection_is_asked_again(server):
    counts, url = server

    async def serve(_, writer):
        writer.write(CHUNKED + chunk(b"one ") + chunk(b"two") + b"0\r\n\r\n")

    counts.serve = serve
    for _ in range(3):
        assert await all_of(await ask(url)) == b"one two"
    assert (counts.connections, counts.questions) == (1, 3)


async def test_one_that_was_closed_while_nobody_asked_costs_nothing(server):
    counts, url = server

    async def serve(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        # As a server does whose patience ends in the moment in which the next question is on its way.
        writer.transport.abort()

    counts.serve = serve
    assert await all_of(await ask(url)) == b"ok"
    assert await all_of(await ask(url)) == b"ok"
    assert counts.connections == 2


async def test_who_has_heard_enough_keeps_the_connection_for_the_next(server):
    counts, url = server
    may_end = asyncio.Event()

    async def serve(_, writer):
        writer.write(CHUNKED + chunk(b"data: [DONE]\n\n"))
        await may_end.wait()
        writer.write(b"0\r\n\r\n")

    counts.serve = serve
    answer = await ask(url)
    assert await answer.readany() == b"data: [DONE]\n\n"
    answer.release()
    may_end.set()
    await asyncio.sleep(0.2)
    assert await all_of(await ask(url)) == b"data: [DONE]\n\n"
    assert counts.connections == 1


async def test_who_goes_away_is_missed_at_once(server):
    counts, url = server

    async def serve(reader, writer):
        writer.write(CHUNKED + chunk(b"one"))
        await reader.readexactly(1)

    counts.serve = serve
    answer = await ask(url)
    assert await answer.readany() == b"one"
    answer.close()
    async with asyncio.timeout(1):
        await counts.gone.wait()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", ConnectionError),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ConnectionError),
        (CHUNKED + chunk(b"one") + b"zz\r\n", ConnectionError),
        (CHUNKED + chunk(b"one"), ConnectionError),
    ],
)
async def test_whatever_breaks_off_is_an_error(server, said, error):
    counts, url = server

    async def serve(_, writer):
        writer.write(said)
        await writer.drain()
        writer.close()

    counts.serve = serve
    with pytest.raises(error):
        await all_of(await ask(url))


async def test_silence_is_an_error_before_the_answer_and_in_it(server):
    counts, url = server

    async def say_nothing(reader, writer):
        await reader.readexactly(1)

    async def say_one_word(reader, writer):
        writer.write(CHUNKED + chunk(b"one"))
        await reader.readexactly(1)

    counts.serve = say_nothing
    with pytest.raises(TimeoutError):
        await ask(url, silence_s=0.05)
    counts.serve = say_one_word
    answer = await ask(url, silence_s=0.05)
    assert await answer.readany() == b"one"
    with pytest.raises(TimeoutError):
        await answer.readany()


async def test_what_nobody_reads_is_not_taken_from_the_server(server):
    counts, url = server
    written = 0

    async def serve(_, writer):
        nonlocal written
        writer.write(CHUNKED)
        for _ in range(1000):
            writer.write(chunk(b"x" * 64 * 1024))
            await writer.drain()
            written += 1
        writer.write(b"0\r\n\r\n")

    counts.serve = serve
    answer = await ask(url, silence_s=0.5)
    await asyncio.sleep(0.8)
    # Some megabytes lie in the sockets of both sides, whatever was asked for.
    assert written < 500
    assert len(await all_of(answer)) == 1000 * 64 * 1024


async def test_nobody_there_is_an_error():
    with pytest.raises(OSError):
        await ask("http://127.0.0.1:1/v1/completions")
