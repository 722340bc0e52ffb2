"""Two machines: one joins the other's portal, is cut off, and comes back. Real processes, real network, real engine."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.namespaces import NODE, PORTAL, Cable, NodeProcess, Services, new_cable
from tests.portal import DEMO_MODEL, Portal

pytestmark = [pytest.mark.portal, pytest.mark.slow, pytest.mark.timeout(420)]

SECRET_KEY = "the-same-on-both-machines-the-same-on-both-machines"
PATIENCE_S = 120
# A node counts as silent after 20 s; then its replacement is loaded.
NOTICED_S = 45
# Two engines and a portal share what processors there are.
ANSWER_S = 60


@dataclass(frozen=True)
class TwoMachines:
    """A portal with a node of its own, and a second node behind a cable."""

    cable: Cable
    portal: Portal
    node: NodeProcess
    services: Services

    def join(self) -> None:
        """Start the second one."""
        self.node.log.unlink(missing_ok=True)
        with self.cable.node.entered():
            self.node.start()
            self.node.wait_output("has joined the portal")

    def replicas(self) -> list[tuple[str, str, int]]:
        """The node, state and pid of each replica that isn't history."""
        return self.portal.query(
            "SELECT coalesce(node.name, ''), replica.state, replica.pid FROM models_admin_instance replica"
            " LEFT JOIN models_admin_node node ON node.id = replica.node_id"
            " WHERE replica.state <> 'stopped' ORDER BY node.name, replica.created_at"
        )

    def wait_for_files(self) -> None:
        """Wait until it is known that both machines have the model's content."""
        deadline = time.monotonic() + PATIENCE_S
        question = (
            "SELECT count(DISTINCT node_id) FROM models_admin_modelfile"
            " WHERE content_id <> '' GROUP BY content_id"
        )
        while self.portal.query(question) != [(2,)]:
            assert time.monotonic() < deadline, self.portal.query(
                "SELECT path, content_id FROM models_admin_modelfile"
            )
            time.sleep(0.2)

    def until(self, done: Callable[[list[tuple[str, str, int]]], bool], limit_s: float = PATIENCE_S) -> float:
        """Wait until the replicas are so. Returns the seconds it took."""
        began = time.monotonic()
        while not done(self.replicas()):
            assert time.monotonic() - began < limit_s, (
                f"{self.replicas()}\n{self.portal.output()}\n{self.node.output()}"
            )
            time.sleep(0.2)
        return time.monotonic() - began


def states(replicas: list[tuple[str, str, int]]) -> list[tuple[str, str]]:
    return [(node, state) for node, state, _ in replicas]


@pytest.fixture(scope="module")
def pair(demo_model: Path) -> Iterator[TwoMachines]:
    """Both started, the second one joined; this thread's network is the portal's machine."""
    folder = Path(tempfile.mkdtemp(prefix="llamaproj-two-"))
    try:
        with new_cable() as cable:
            services = Services(folder / "services")
            common = {"SECRET_KEY": SECRET_KEY} | services.variables
            portal = Portal(
                folder / "first", NODE_NAME="first", ALLOWED_HOSTS=f"127.0.0.1,{PORTAL}", **common
            )
            models = folder / "second-models"
            models.mkdir()
            shutil.copyfile(demo_model, models / "the-same-under-another-name.gguf")
            node = NodeProcess("second", folder / "second", MODELS_DIR=str(models), **common)
            try:
                with cable.portal.entered():
                    services.start()
                    deadline = time.monotonic() + PATIENCE_S
                    while not services.is_ready():
                        assert time.monotonic() < deadline
                        time.sleep(0.05)
                    services.postgres.create_database("llamaproj")
                    portal.start().wait_ready(models=1)
                machines = TwoMachines(cable, portal, node, services)
                machines.join()
                with cable.portal.entered():
                    yield machines
            finally:
                cable.mend()
                with cable.node.entered():
                    node.close()
                with cable.portal.entered():
                    portal.close()
                services.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def machines(pair: TwoMachines) -> TwoMachines:
    """The same for one test, whatever the one before has done to the second one."""
    pair.cable.mend()
    if pair.node.process is None:
        pair.join()
    return pair


class Client:
    """Asks the portal's API all the time, as its users do."""

    def __init__(self, portal: Portal) -> None:
        key = portal.manage("apikey", "create", "--user", "admin", "--name", "test").splitlines()[-1]
        self._portal = portal
        self._headers = {"authorization": f"Bearer {key}"}

    def ask(self) -> str:
        """One answer; returns the instance that gave it."""
        question = {
            "model": DEMO_MODEL,
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 4,
        }
        try:
            answer = httpx.post(
                f"{self._portal.base_url}/v1/chat/completions",
                json=question,
                headers=self._headers,
                timeout=ANSWER_S,
            )
        except httpx.TimeoutException:
            pytest.fail(f"no answer within {ANSWER_S} s:\n{self._portal.output()}")
        assert answer.status_code == httpx.codes.OK, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        return answer.headers["x-llamaproj-instance"]

    def ask_at_once(self, count: int) -> set[str]:
        """So many answers at the same time; returns the instances that gave them."""
        with ThreadPoolExecutor(count) as threads:
            return set(threads.map(lambda _: self.ask(), range(count)))


def test_a_node_joins_is_cut_off_and_comes_back(machines: TwoMachines) -> None:
    portal, node = machines.portal, machines.node
    [(address, gpus, engine, memory)] = portal.query(
        "SELECT address, gpus, engine, memory_free_bytes FROM models_admin_node WHERE name = 'second'"
    )
    assert address == NODE
    assert gpus == []
    assert engine.startswith("embedded")
    assert memory > 0

    # A replica on each machine, from a file with the same content under another name.
    machines.wait_for_files()
    portal.manage("models", "scale", DEMO_MODEL, "2")
    machines.until(lambda now: states(now) == [("first", "ready"), ("second", "ready")])
    [(_, _, first_pid), (_, _, second_pid)] = machines.replicas()
    assert f"DATA_DIR={node.data_dir}" not in Path(f"/proc/{first_pid}/environ").read_text()
    worker = node.pids["node"]
    client = Client(portal)
    assert len(client.ask_at_once(4)) == 2

    machines.cable.cut()
    answered, noticed, ready = 0, 0.0, 0.0
    began = time.monotonic()
    while not ready:
        now = states(machines.replicas())
        seconds = time.monotonic() - began
        noticed = noticed or (seconds if ("second", "unreachable") in now else 0.0)
        ready = seconds if now.count(("first", "ready")) == 2 and noticed else 0.0
        assert seconds < NOTICED_S, (now, portal.output())
        client.ask()
        answered += 1
    assert answered > 3
    print(f"noticed after {noticed:.1f} s, replaced after {ready:.1f} s, {answered} answers meanwhile")
    # What was cut off goes on: nobody told it to stop.
    assert psutil.pid_exists(second_pid)
    assert node.pids["node"] == worker

    machines.cable.mend()
    back = machines.until(
        lambda now: (
            sorted(states(now)) == [("first", "ready"), ("second", "ready")]
            and ("second", "ready", second_pid) in now
        )
    )
    print(f"back after {back:.1f} s")
    assert node.pids["node"] == worker, node.output()
    assert len(node.llama_servers()) == 2
    running = [one for one in node.processes() if "embedded_engine" in " ".join(one.cmdline())]
    assert [one.pid for one in running] == [second_pid]
    assert len(client.ask_at_once(4)) == 2

    # Its own Ctrl-C ends it with its llama-server; the portal's goes on.
    assert node.stop() == 0
    assert node.processes() == []
    machines.until(lambda now: not any(node == "second" for node, _, _ in now))
    assert client.ask()
    assert psutil.pid_exists(first_pid)


def test_who_does_not_fit_is_refused_and_who_is_cut_off_can_be_stopped(machines: TwoMachines) -> None:
    cases = {
        "SECRET_KEY differs from the portal's": {"SECRET_KEY": "another" * 10},
        "Another machine is alive under the name second": {},
        "The database of DATABASE_URL can't be reached": {
            "DATABASE_URL": f"postgresql://postgres@{PORTAL}:1/llamaproj"
        },
        "The Redis of REDIS_URL can't be reached": {"REDIS_URL": f"redis://{PORTAL}:1/0"},
        "LLAMA_SERVER_BIN=/bin/true isn't a llama-server": {"LLAMA_SERVER_BIN": "/bin/true"},
        "NODE_ADDRESS=0.0.0.0 means every network": {"NODE_ADDRESS": "0.0.0.0"},
        "NODE_ADDRESS=10.77.1.2 is not an address of this machine": {"NODE_ADDRESS": PORTAL},
        "set DATABASE_URL, REDIS_URL, SECRET_KEY to the portal's": {
            "DATABASE_URL": "",
            "REDIS_URL": "",
            "SECRET_KEY": "",
        },
    }
    with machines.cable.node.entered():
        for number, (words, variables) in enumerate(cases.items()):
            node = NodeProcess(
                "second", machines.node.data_dir.with_name(f"third-{number}"), **machines.node.env | variables
            )
            node.env["DATA_DIR"] = str(node.data_dir)
            status, output = node.refuse()
            assert status == 1, output
            assert words in output
            assert len(output.splitlines()) == 1, output
            assert node.processes() == []

    # Its own Ctrl-C ends what it started also where the database can't be asked.
    orphan = subprocess.Popen(
        ["sleep", "600"],
        env=os.environ | {"LLAMAPROJ_SPAWNED_FOR": str(machines.node.data_dir)},
        start_new_session=True,
    )
    machines.cable.cut()
    assert machines.node.stop(timeout=60) == 0
    assert orphan.wait(30) == -signal.SIGTERM
    assert "in time" in machines.node.output()
    assert machines.node.processes() == []
