"""What a machine says of itself, and whose name a name is."""

import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from django.db import InterfaceError, OperationalError
from django.db.models.functions import Now
from django.utils import timezone

from llamaproj import env
from models_admin import lifecycle, tasks
from models_admin.errors import NameTaken
from models_admin.models import SILENT_AFTER, Node
from models_admin.nodes import facts as node_facts
from models_admin.nodes.gpus import Nvml
from tests.fake_nvml import Library

pytestmark = pytest.mark.django_db


def test_a_machine_tells_what_it_has() -> None:
    said = node_facts.facts(Nvml(Library()))
    assert said["cpu_count"] == os.cpu_count()
    assert said["memory_bytes"] == psutil.virtual_memory().total
    assert 0 < said["memory_free_bytes"] < said["memory_bytes"]
    assert said["gpus"] == [
        {"index": 0, "name": "H200", "memory_bytes": 80, "free_bytes": 70, "by_pid": {"1": 9}}
    ]
    assert said["address"] == "127.0.0.1"


def test_a_gpu_that_does_not_tell_its_memory_has_none_free() -> None:
    library = Library()
    library.nvmlDeviceGetMemoryInfo = lambda handle: (_ for _ in ()).throw(library.NVMLError())
    (gpu,) = node_facts.facts(Nvml(library))["gpus"]
    assert (gpu["memory_bytes"], gpu["free_bytes"]) == (0, 0)


def test_the_first_heartbeat_makes_the_node_with_its_labels_and_later_ones_leave_labels_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(env, "NODE_LABELS", ["gpu", "large", "gpu"])
    monkeypatch.setattr(env, "NODE_ADDRESS", "10.1.2.3")
    node = node_facts.register()
    assert (node.labels, node.address, node.is_alive) == (["gpu", "large"], "10.1.2.3", True)
    Node.objects.update(labels=["small"], accepts_replicas=False, memory_limit_bytes=7, memory_bytes=1)
    node = node_facts.register()
    assert (node.labels, node.accepts_replicas, node.memory_limit_bytes) == (["small"], False, 7)
    assert node.memory_bytes == psutil.virtual_memory().total


def test_a_heartbeat_is_one_update(django_assert_num_queries) -> None:
    node_facts.register()
    with django_assert_num_queries(2) as asked:  # the second reads the row back
        node_facts.register()
    assert [query["sql"].split()[0] for query in asked] == ["UPDATE", "SELECT"]


def test_what_only_looks_at_the_machine_does_not_make_it_alive() -> None:
    assert not node_facts.this_node().is_alive


def test_the_databases_clock_decides_who_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    node = node_facts.register()
    wrong = timezone.now() + timedelta(days=400)
    monkeypatch.setattr(timezone, "now", lambda: wrong)
    assert node_facts.register().is_alive
    assert list(Node.objects.alive()) == [node]
    Node.objects.update(last_seen=Now() - SILENT_AFTER)
    assert not node.is_alive
    assert list(Node.objects.silent()) == [node]


def test_who_leaves_counts_as_silent_at_once_and_is_back_with_the_next_heartbeat() -> None:
    node = node_facts.register()
    node_facts.leave()
    assert not node.is_alive
    assert node_facts.register().is_alive


def test_a_name_belongs_to_the_machine_that_is_alive_under_it() -> None:
    node_facts.register()
    Node.objects.update(machine="another", cpu_count=77)
    with pytest.raises(NameTaken, match=f"Another machine is alive under the name {env.NODE_NAME}"):
        node_facts.check_name()
    with pytest.raises(NameTaken):
        node_facts.register()
    node_facts.leave()
    node = Node.objects.get()
    assert (node.cpu_count, node.is_alive, node_facts.is_ours(node.name)) == (77, True, False)

    Node.objects.update(last_seen=Now() - SILENT_AFTER)
    node_facts.check_name()
    assert node_facts.register().machine == env.machine_id()


def test_a_worker_never_judges_the_processes_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    monkeypatch.setattr(lifecycle, "reconcile", passes.append)
    name = node_facts.register().name
    tasks.reconcile_node(name)
    assert passes == [name]
    Node.objects.update(machine="another")
    tasks.reconcile_node(name)
    assert passes == [name]


def test_the_engine_is_told_with_its_version_and_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "llama-server"
    calls = tmp_path / "calls"
    binary.write_text(f"#!/bin/sh\necho x >> {calls}\necho 'version: 6543 (0123abc)' >&2\n")
    binary.chmod(0o755)
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(binary))
    assert node_facts.engine_name() == node_facts.engine_name() == "llama-server 6543 (0123abc)"
    assert calls.read_text() == "x\n"


def test_an_engine_that_tells_no_version_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "my-server"
    binary.write_text("#!/bin/sh\nexit 3\n")
    binary.chmod(0o755)
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(binary))
    assert node_facts.engine_name() == "my-server"
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(tmp_path / "nothing"))
    assert node_facts.engine_name() == ""


def test_the_embedded_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_facts, "shutil", SimpleNamespace(which=lambda name: None))
    assert node_facts.engine_name().startswith("embedded, xllamacpp 2026.")


def test_who_was_cut_off_looks_at_once_when_the_database_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock's tick comes through the broker, which may be found again much later."""
    answers = iter([None, OperationalError("no route\nto host"), InterfaceError("closed"), None, None, None])
    register, seen = node_facts.register, list[str]()

    def announce() -> Node:
        answer = next(answers)
        seen.append("lost" if answer else "heard")
        if answer:
            raise answer
        return register()

    class Stopping:
        left = 5

        def wait(self, seconds: float) -> bool:
            self.left -= 1
            return self.left < 0

    monkeypatch.setattr(node_facts, "register", announce)
    monkeypatch.setattr(tasks, "_stopping", Stopping())
    monkeypatch.setattr(tasks, "wake", lambda name: seen.append("woken"))
    monkeypatch.setattr(tasks, "close_old_connections", lambda: None)
    monkeypatch.setattr(lifecycle, "reconcile", lambda name: seen.append("looked"))
    tasks._announce()
    first, cut_off, back, later = (
        ["heard", "woken"],
        ["lost", "lost"],
        ["heard", "woken", "looked"],
        ["heard", "woken"],
    )
    assert seen == [*first, *cut_off, *back, *later, *later]
