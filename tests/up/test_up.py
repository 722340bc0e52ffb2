"""`up` as a person uses it: start, stop, start again, whatever happened in between."""

import os
import re
import signal
import socket
import time

import psutil
import psycopg
import pytest

from llamaproj import env
from llamaproj.up.leftovers import is_alive
from tests import services
from tests.portal import Portal

pytestmark = [pytest.mark.portal, pytest.mark.timeout(240)]

PORTAL = {"web", "generator", "worker", "node", "beat"}
EVERYTHING = PORTAL | {"postgres", "valkey"}
SECOND_START_S = 10
STOP_S = 10
PATIENCE_S = 90


def wait_for_another(portal: Portal, name: str, old: int) -> None:
    """Wait until `name` runs as another process than `old`."""
    deadline = time.monotonic() + PATIENCE_S
    while portal.pids.get(name, old) == old:
        assert time.monotonic() < deadline, f"{name} was not started again:\n{portal.output()}"
        time.sleep(0.05)


def test_it_starts_stops_without_leaving_anything_and_starts_again_quickly(own_portal):
    own_portal.env["ADMIN_PASSWORD"] = ""
    own_portal.start().wait_ready()
    own_portal.wait_output("llamaproj is ready at")
    own_portal.wait_pids(EVERYTHING)
    assert re.search(r"Sign in as admin with the password \S{12,} \(shown this once", own_portal.output())
    began = time.monotonic()
    assert own_portal.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < STOP_S
    assert own_portal.processes() == []

    own_portal.log.unlink()
    began = time.monotonic()
    own_portal.start().wait_ready()
    # On a machine that does other things at the same time it may take as much longer.
    busy = max(1, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert time.monotonic() - began < SECOND_START_S * busy
    own_portal.wait_output("llamaproj is ready at")
    assert "password" not in own_portal.output()
    assert own_portal.stop(signal.SIGTERM) == 0
    assert own_portal.processes() == []


def test_after_kill_9_up_works_and_adopts_the_models_that_run(own_portal):
    own_portal.env["DEMO_MODEL"] = "1"
    own_portal.start().wait_ready(models=1)
    [llama_server] = own_portal.llama_servers()
    before = [psutil.Process(pid) for pid in own_portal.wait_pids(EVERYTHING).values()]
    own_portal.kill()
    own_portal.start().wait_ready(models=1)
    assert not [process for process in before if is_alive(process)]
    assert own_portal.llama_servers() == [llama_server]

    own_portal.kill_everything()
    own_portal.start().wait_ready()
    own_portal.wait_llama_servers(1)
    assert own_portal.stop() == 0
    assert own_portal.processes() == []


def test_who_is_killed_comes_back(portal):
    portal.wait_pids(EVERYTHING)
    for name in ("web", "generator", "postgres", "valkey"):
        before = portal.pids
        os.kill(before[name], signal.SIGKILL)
        wait_for_another(portal, name, before[name])
        portal.wait_ready()
        assert {other: pid for other, pid in portal.pids.items() if other != name}.items() <= before.items()


def test_an_occupied_port_is_refused(own_portal):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", own_portal.port))
        listener.listen()
        status, output = own_portal.refuse()
    assert status == 1
    assert output == (
        f"llamaproj: Port {own_portal.port} on 127.0.0.1 is taken by another program; set PORT to a free one."
    )
    assert own_portal.processes() == []


def test_a_second_up_on_the_same_data_is_refused_and_does_not_disturb_the_first(portal):
    before = portal.pids
    second = Portal(portal.data_dir)
    second.log = portal.data_dir / "second.log"
    status, output = second.refuse()
    assert status == 1
    assert "already runs on DATA_DIR" in output
    assert portal.pids == before
    portal.wait_ready()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"LLAMA_SERVER_BIN": "/no/such/llama-server"},
            "LLAMA_SERVER_BIN=/no/such/llama-server doesn't exist.",
        ),
        ({"LLAMA_SERVER_BIN": "/bin/true"}, "isn't a llama-server"),
        (
            {"DATABASE_URL": "postgresql://postgres@127.0.0.1:1/x"},
            "database of DATABASE_URL can't be reached",
        ),
        ({"PORT": "eighty"}, "PORT='eighty' can't be used: a port is a number from 1 to 65535"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(own_portal, variables, words):
    own_portal.env |= variables
    status, output = own_portal.refuse()
    assert status == 1
    assert words in output
    assert len(output.splitlines()) == 1
    assert own_portal.processes() == []


def test_given_services_are_used_and_the_embedded_ones_never_start(own_portal):
    services.postgres.create_database("outside")
    url = f"postgresql://postgres@/outside?host={env.socket_dir()}"
    own_portal.env |= {"DATABASE_URL": url, "REDIS_URL": f"unix://{env.socket_dir()}/valkey.sock?db=7"}
    try:
        own_portal.start().wait_ready()
        own_portal.wait_pids(PORTAL)
        assert not (own_portal.data_dir / "postgres").exists()
        assert not (own_portal.data_dir / "valkey").exists()
        assert own_portal.query("SELECT username FROM accounts_user") == [("admin",)]
        assert own_portal.stop() == 0
    finally:
        with psycopg.connect(
            f"host={env.socket_dir()} user=postgres dbname=postgres", autocommit=True
        ) as connection:
            connection.execute("DROP DATABASE outside WITH (FORCE)")
