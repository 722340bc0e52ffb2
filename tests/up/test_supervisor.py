"""The supervisor keeps programs running and stops them."""

import asyncio
import io
import json
import signal
import subprocess
import sys

import psutil
import pytest

from llamaproj.up import program
from llamaproj.up.leftovers import Record, argv, end, is_alive
from llamaproj.up.program import Program
from llamaproj.up.supervisor import Output, Supervisor

PATIENCE_S = 30
STUBBORN = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def python(name: str, code: str, **options) -> Program:
    return Program(name=name, argv=[sys.executable, "-c", code], **options)


class Lines(io.StringIO):
    """Output that can be awaited."""

    async def until(self, text: str, times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.getvalue().count(text) < times:
                await asyncio.sleep(0.01)


@pytest.fixture
def lines():
    return Lines()


@pytest.fixture
async def supervisor(tmp_path, lines):
    supervisor = Supervisor(record=Record(tmp_path / "processes.json"), output=Output(lines))
    yield supervisor
    hurry = asyncio.Event()
    hurry.set()
    await supervisor.stop(supervisor.names(), hurry=hurry)
    await supervisor.close()


async def test_output_carries_the_name_and_the_last_line_needs_no_end(supervisor, lines):
    await supervisor.start(python("talker", "import sys,time; print('one'); sys.stdout.write('two')"))
    await lines.until("talker    | two")
    assert "talker    | one\n" in lines.getvalue()


async def test_a_line_without_end_is_cut_instead_of_kept(supervisor, lines):
    await supervisor.start(
        python("flood", "import time; print('x' * 200_000, end='', flush=True); time.sleep(60)")
    )
    await lines.until("flood     | xxx")


async def test_who_dies_is_started_again(supervisor, lines, tmp_path):
    child = await supervisor.start(python("worker", "import time; print('up', flush=True); time.sleep(60)"))
    await lines.until("worker    | up")
    first = child.process.pid
    child.process.kill()
    await lines.until("worker    | up", times=2)
    assert "worker    | ended by SIGKILL; starting again in 0.2 s" in lines.getvalue()
    assert child.process.pid != first
    assert Record(tmp_path / "processes.json").pids() == {"worker": child.process.pid}


async def test_who_keeps_dying_is_started_again_ever_later(supervisor, lines):
    await supervisor.start(python("broken", "raise SystemExit(3)"))
    await lines.until("broken    | ended with status 3; starting again in 0.8 s")
    assert "starting again in 0.4 s" in lines.getvalue()


async def test_stopping_ends_the_process_and_nobody_starts_it_again(supervisor, lines, tmp_path):
    child = await supervisor.start(python("worker", "import time; print('up', flush=True); time.sleep(60)"))
    await lines.until("worker    | up")
    await supervisor.stop(["worker"], hurry=asyncio.Event())
    assert child.process.returncode == -signal.SIGTERM
    assert supervisor.names() == []
    assert Record(tmp_path / "processes.json").pids() == {}


async def test_who_ignores_the_signal_is_killed_after_its_grace(supervisor, lines):
    child = await supervisor.start(python("stubborn", STUBBORN, grace_s=0.2))
    await lines.until("stubborn  | up")
    await supervisor.stop(["stubborn"], hurry=asyncio.Event())
    assert child.process.returncode == -signal.SIGKILL


async def test_hurry_does_not_wait_for_the_grace(supervisor, lines):
    child = await supervisor.start(python("stubborn", STUBBORN, grace_s=60))
    await lines.until("stubborn  | up")
    hurry = asyncio.Event()
    stop = asyncio.create_task(supervisor.stop(["stubborn"], hurry=hurry))
    await asyncio.sleep(0)
    hurry.set()
    async with asyncio.timeout(PATIENCE_S):
        await stop
    assert child.process.returncode == -signal.SIGKILL


async def test_who_waits_to_be_started_again_can_be_stopped(supervisor, lines):
    await supervisor.start(python("broken", "raise SystemExit(3)"))
    await lines.until("starting again in 0.8 s")
    async with asyncio.timeout(PATIENCE_S):
        await supervisor.stop(["broken"], hurry=asyncio.Event())


async def test_a_log_file_takes_the_output(supervisor, lines, tmp_path):
    log = tmp_path / "logs" / "quiet.log"
    child = await supervisor.start(
        python("quiet", "import time; print('up', flush=True); time.sleep(60)", log_file=log)
    )
    async with asyncio.timeout(PATIENCE_S):
        while not (log.exists() and log.read_text() == "up\n"):
            await asyncio.sleep(0.01)
    assert child.is_running
    assert lines.getvalue() == ""


async def test_a_predecessors_processes_are_ended_and_strangers_are_not(tmp_path):
    path = tmp_path / "processes.json"
    mine, stranger = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
        for _ in range(2)
    ]
    record = Record(path)
    record.add("web", mine.pid)
    record.add("node", stranger.pid)
    # As if the pid of "node" had been given to a later process.
    entries = json.loads(path.read_text())
    entries["node"][1] -= 100
    path.write_text(json.dumps(entries))
    assert await asyncio.to_thread(Record(path).end_running) == ["web"]
    assert await mine.wait() == -signal.SIGTERM
    assert is_alive(psutil.Process(stranger.pid))
    await asyncio.to_thread(end, [psutil.Process(stranger.pid)])
    await stranger.wait()


async def test_one_that_ended_and_was_not_collected_is_not_alive_and_has_no_argv():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = psutil.Process(child.pid)
    async with asyncio.timeout(PATIENCE_S):
        # A moment after it was made it has no argv yet.
        while not argv(process):
            await asyncio.sleep(0.01)
    assert argv(process)[0] == sys.executable
    child.kill()
    async with asyncio.timeout(PATIENCE_S):
        while is_alive(process):
            await asyncio.sleep(0.01)
    assert argv(process) == []
    child.wait()
    assert argv(process) == []
    await asyncio.to_thread(end, [process])


@pytest.mark.parametrize("text", ["", "{", '{"web": [999999999, 1.0]}'])
def test_a_damaged_or_stale_record_ends_nobody(tmp_path, text):
    (tmp_path / "processes.json").write_text(text)
    assert Record(tmp_path / "processes.json").end_running() == []


WRITER = """
import time
for number in range(1_000):
    print(f'line {number:04}', flush=True)
    time.sleep(0.0005)
while True:  # one of them may be lost
    print('last', flush=True)
    time.sleep(0.1)
"""


async def test_a_log_is_kept_short_and_written_on(supervisor, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "_MOST_LOG_BYTES", 2_000)
    monkeypatch.setattr("llamaproj.up.supervisor._TRIM_EVERY_S", 0.05)
    log, older = tmp_path / "logs" / "writer.log", tmp_path / "logs" / "writer.log.1"
    await supervisor.start(python("writer", WRITER, log_file=log))

    def said() -> str:
        return "".join(file.read_text() for file in (older, log) if file.exists())

    async with asyncio.timeout(PATIENCE_S):
        # Nobody cuts it any more.
        while not (said().endswith("last\n") and log.stat().st_size <= 2_000):
            await asyncio.sleep(0.05)

    before = [line for line in said().splitlines() if line != "last"]
    assert before
    assert all(line.startswith("line ") and len(line) == 9 for line in before)
    assert before == sorted(before)
    assert 0 < older.stat().st_size <= 2_000
    assert older.stat().st_mode & 0o077 == 0
