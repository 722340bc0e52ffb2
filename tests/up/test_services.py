"""The embedded services recover from what a killed predecessor leaves."""

import os
import subprocess
import time

import psutil
import psycopg
import pytest
import redis

from llamaproj.up.leftovers import is_alive
from llamaproj.up.postgres import Postgres
from llamaproj.up.valkey import Valkey

pytestmark = pytest.mark.slow
PATIENCE_S = 60


def run(service) -> subprocess.Popen:
    program = service.program()
    log = program.open_log()
    process = subprocess.Popen(program.argv, stdout=log, stderr=log, **program.popen_options())
    os.close(log)
    return process


def wait_ready(service, process) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not service.is_ready():
        assert process.poll() is None, "ended"
        assert time.monotonic() < deadline, "not ready"
        time.sleep(0.02)


@pytest.fixture
def postgres(tmp_path):
    (tmp_path / "run").mkdir()
    service = Postgres(
        data=tmp_path / "postgres",
        sockets=tmp_path / "run",
        log_file=tmp_path / "postgres.log",
        durable=False,
    )
    yield service
    service.prepare()


@pytest.fixture
def valkey(tmp_path):
    service = Valkey(
        data=tmp_path / "valkey", socket=tmp_path / "valkey.sock", log_file=tmp_path / "valkey.log"
    )
    yield service
    if (tmp_path / "valkey").exists():
        service.prepare()


def test_postgres_replaces_a_predecessor_that_still_runs_and_keeps_its_data(postgres, tmp_path):
    postgres.prepare()
    first = run(postgres)
    wait_ready(postgres, first)
    postgres.create_database("kept")
    postgres.prepare()
    assert first.wait(PATIENCE_S) == 0
    second = run(postgres)
    wait_ready(postgres, second)
    with psycopg.connect(f"host={tmp_path / 'run'} user=postgres dbname=kept") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    postgres.prepare()
    second.wait(PATIENCE_S)


def test_postgres_starts_after_its_predecessor_was_killed(postgres):
    postgres.prepare()
    first = run(postgres)
    wait_ready(postgres, first)
    backends = psutil.Process(first.pid).children()
    first.kill()
    first.wait()
    postgres.prepare()
    assert not [process for process in backends if is_alive(process)]
    second = run(postgres)
    wait_ready(postgres, second)
    postgres.prepare()
    second.wait(PATIENCE_S)


def test_postgres_ignores_a_lock_file_with_the_pid_of_a_stranger(postgres, tmp_path):
    postgres.prepare()
    (tmp_path / "postgres" / "postmaster.pid").write_text(
        f"{os.getpid()}\n{tmp_path}\n0\n5432\n{tmp_path}\n\n\n"
    )
    postgres.prepare()
    process = run(postgres)
    wait_ready(postgres, process)
    postgres.prepare()
    process.wait(PATIENCE_S)


def test_a_half_made_cluster_is_made_again(postgres, tmp_path):
    (tmp_path / "postgres.new").mkdir()
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    postgres.prepare()
    assert (tmp_path / "postgres" / "global").is_dir()
    assert not (tmp_path / "postgres.new").exists()


def test_valkey_replaces_a_predecessor_and_drops_only_what_was_cut_off(valkey, tmp_path):
    valkey.prepare()
    first = run(valkey)
    wait_ready(valkey, first)
    with redis.Redis(unix_socket_path=str(tmp_path / "valkey.sock")) as client:
        client.set("kept", "1")
        client.set("cut", "2")
        client.execute_command("WAITAOF", 1, 0, 5000)
    first.kill()
    first.wait()
    aof = next((tmp_path / "valkey" / "appendonlydir").glob("*.incr.aof"))
    aof.write_bytes(aof.read_bytes()[:-3])
    valkey.prepare()
    second = run(valkey)
    wait_ready(valkey, second)
    with redis.Redis(unix_socket_path=str(tmp_path / "valkey.sock")) as client:
        assert client.get("kept") == b"1"
        assert client.get("cut") is None
    valkey.prepare()
    second.wait(PATIENCE_S)


def test_valkey_data_that_cannot_be_read_is_set_aside(valkey, tmp_path):
    folder = tmp_path / "valkey" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("nonsense\n")
    valkey.prepare()
    assert run(valkey).wait(PATIENCE_S) != 0
    place = valkey.set_aside()
    assert (place / "appendonlydir").is_dir()
    valkey.prepare()
    process = run(valkey)
    wait_ready(valkey, process)
    process.terminate()
    process.wait(PATIENCE_S)
