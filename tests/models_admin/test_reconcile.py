import os
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from django.db import connection
from django.utils import timezone

from llamaproj import env
from models_admin import lifecycle
from models_admin.engine import instance_log, launch, process
from models_admin.engine.probe import Probe
from models_admin.instances.patience import Patience
from models_admin.models import Instance, Node, ServedModel
from models_admin.states import InstanceState as S
from tests.models_admin.conftest import HASTY, Passes, living, only, state_of, want

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


@pytest.fixture
def ready(served: ServedModel, fake: Callable[..., None], passes: Passes) -> ServedModel:
    want(served, 1)
    passes.until(lambda: state_of(served) == S.READY)
    return served


def test_a_wanted_model_becomes_ready(ready: ServedModel) -> None:
    instance = only(ready)
    assert [(change.old, change.new) for change in instance.changes.order_by("at", "pk")] == [
        ("pending", "starting"),
        ("starting", "ready"),
    ]
    assert httpx.get(f"{instance.base_url}/health").status_code == 200
    assert httpx.get(f"{instance.base_url}/slots").status_code == 401
    assert Probe.of(instance).is_idle()
    found = living(instance)
    assert found is not None
    assert instance.api_key not in " ".join(found.cmdline())
    assert os.getpgid(found.pid) == found.pid
    log = instance_log.path_of(str(instance.pk))
    assert log.stat().st_mode & 0o077 == 0
    assert "serving fake-model" in "\n".join(instance_log.tail(str(instance.pk)))


def test_a_pass_over_a_settled_node_changes_nothing(ready: ServedModel, passes: Passes) -> None:
    passes.once()
    before = Instance.objects.values().get()
    passes.once()
    assert Instance.objects.values().get() == before


def test_two_workers_at_once_start_one_process(
    served: ServedModel, fake: Callable[..., None], node: Node
) -> None:
    want(served, 1)

    def worker() -> None:
        try:
            for _ in range(3):
                lifecycle.reconcile(node.name, HASTY)
        finally:
            connection.close()

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Instance.objects.count() == 1
    assert len(list(process.with_mark(process.mark_of_all()))) == 1


def test_a_pass_that_waits_too_long_for_another_leaves(served: ServedModel, node: Node) -> None:
    want(served, 1)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"reconcile:{node.name}"])
        with ThreadPoolExecutor() as other:
            passed = other.submit(lifecycle.reconcile, node.name).result(10)
            other.submit(lambda: connection.close()).result()
        cursor.execute("SELECT pg_advisory_unlock_all()")
    assert passed is None
    assert not Instance.objects.exists()


def test_loading_is_a_state_not_a_wait(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    fake(load_s=1.0)
    want(served, 1)
    assert passes.once() is not None
    assert state_of(served) == S.STARTING
    passes.until(lambda: state_of(served) == S.READY)


def test_an_unwanted_model_stops_and_its_process_ends(ready: ServedModel, passes: Passes) -> None:
    found = living(only(ready))
    want(ready, 0)
    passes.once()
    assert state_of(ready) == S.DRAINING
    passes.until(lambda: state_of(ready) == "stopped")
    assert found is not None
    assert not found.is_running()
    stopped = Instance.objects.get()
    assert (stopped.port, stopped.pid, bytes(stopped.api_key_encrypted)) == (None, None, b"")


def test_a_process_that_ignores_sigterm_is_killed(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    fake(ignore_term=True)
    want(served, 1)
    passes.until(lambda: state_of(served) == S.READY)
    want(served, 0)
    passes.until(lambda: state_of(served) == "stopped")


def test_an_answer_in_progress_may_end_before_the_process_does(ready: ServedModel, passes: Passes) -> None:
    instance = only(ready)
    request = {"messages": [], "stream": True, "fake": {"tokens": 60, "interval_ms": 25}}
    headers = {"authorization": f"Bearer {instance.api_key}"}
    with httpx.stream(
        "POST", f"{instance.base_url}/v1/chat/completions", json=request, headers=headers, timeout=10
    ) as answer:
        chunks = answer.iter_lines()
        next(chunks)
        want(ready, 0)
        for _ in range(3):
            passes.once()
        assert state_of(ready) == S.DRAINING
        assert list(chunks)[-2] == "data: [DONE]"
    passes.until(lambda: state_of(ready) == "stopped")


def test_a_killed_process_is_started_again(ready: ServedModel, passes: Passes) -> None:
    instance = only(ready)
    old = instance.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    passes.until(lambda: state_of(ready) == S.READY and only(ready).pid != old)
    again = only(ready)
    assert again.pk == instance.pk
    assert again.crashes == 1
    assert "SIGKILL" in again.changes.get(new=S.CRASHED).reason
    passes.until(lambda: only(ready).crashes == 0)


def test_what_is_ended_from_outside_is_never_given_up(ready: ServedModel, passes: Passes) -> None:
    old = only(ready).pid
    assert old is not None
    Instance.objects.update(crashes=HASTY.crashes, ready_at=timezone.now())
    os.kill(old, signal.SIGKILL)
    passes.until(lambda: state_of(ready) == S.READY and only(ready).pid != old)
    assert only(ready).changes.filter(new=S.BACKING_OFF).exists()


def test_one_that_is_halted_while_it_loads_is_started_again(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    fake(load_s=60)
    want(served, 1)
    passes.until(lambda: state_of(served) == S.STARTING and only(served).pid is not None)
    old = only(served).pid
    assert old is not None
    os.kill(old, signal.SIGSTOP)
    fake()
    passes.until(lambda: state_of(served) == S.READY and only(served).pid != old)
    assert only(served).faults == 0


def test_repeated_crashes_end_in_failure_with_the_logs_last_lines(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    fake(crash=True)
    want(served, 1)
    passes.until(lambda: state_of(served) == S.FAILED)
    instance = only(served)
    assert instance.crashes == instance.faults == HASTY.crashes
    assert "failed to load model, as told" in instance.reason
    assert instance.port is None
    passes.once()
    assert state_of(served) == S.FAILED


def test_each_crash_doubles_the_wait() -> None:
    patience = Patience(backoff_first=1, backoff_most=60)
    for crashes, middle in ((1, 1), (2, 2), (3, 4), (20, 60)):
        assert middle * 0.75 <= patience.backoff(crashes) <= middle * 1.25


def test_a_start_that_takes_too_long_is_a_crash(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    fake(load_s=60)
    passes.patience = Patience(start=0.5, crashes=1)
    want(served, 1)
    passes.until(lambda: state_of(served) == S.FAILED)
    assert "didn't become ready within" in only(served).reason


def test_a_living_process_that_does_not_answer_is_replaced(ready: ServedModel, passes: Passes) -> None:
    old = only(ready).pid
    assert old is not None
    os.kill(old, signal.SIGSTOP)
    passes.until(lambda: only(ready).unhealthy_since is not None)
    assert state_of(ready) == S.READY
    passes.until(lambda: state_of(ready) == S.READY and only(ready).pid != old)


def test_a_new_worker_adopts_what_runs(
    ready: ServedModel, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = only(ready)
    monkeypatch.setattr(process, "_children", {})
    passes.once()
    again = only(ready)
    assert (again.state, again.pid, again.crashes) == (S.READY, instance.pid, 0)


def test_a_start_interrupted_before_the_pid_was_written_is_finished(
    ready: ServedModel, passes: Passes
) -> None:
    pid = only(ready).pid
    Instance.objects.update(state=S.STARTING, pid=None, pid_created=None)
    passes.until(lambda: state_of(ready) == S.READY)
    assert only(ready).pid == pid


@pytest.mark.parametrize("state", [S.DRAINING, S.UNREACHABLE])
def test_a_process_whose_pid_was_never_written_is_found_in_every_state(
    ready: ServedModel, passes: Passes, state: S
) -> None:
    one = only(ready)
    found = living(one)
    assert found is not None
    Instance.objects.update(state=state, pid=None, pid_created=None)
    want(ready, 0)
    passes.until(lambda: state_of(ready) == "stopped")
    assert not found.is_running()
    assert one.changes.filter(new=S.READY).count() == (2 if state == S.UNREACHABLE else 1), "it was adopted"


def test_a_start_of_which_nothing_is_left_is_a_crash(served: ServedModel, node: Node, passes: Passes) -> None:
    Instance.objects.create(served=served, node=node, state=S.STARTING, port=20_001)
    want(served, 1)
    passes.patience = Patience(backoff_first=60)
    passes.once()
    assert "worker ended while starting" in only(served).reason
    assert state_of(served) == S.BACKING_OFF


def test_a_stranger_with_the_same_pid_is_left_alone(ready: ServedModel, passes: Passes) -> None:
    found = living(only(ready))
    with subprocess.Popen(["sleep", "60"]) as stranger:
        # As if our process had ended and the system had given its pid to this one.
        Instance.objects.update(pid=stranger.pid)
        want(ready, 0)
        passes.until(lambda: state_of(ready) == "stopped")
        assert stranger.poll() is None
        stranger.kill()
    assert found is not None
    found.kill()


def test_a_clock_that_was_set_makes_no_stranger_of_what_runs(ready: ServedModel, passes: Passes) -> None:
    found = living(only(ready))
    assert found is not None
    Instance.objects.update(pid_created=found.create_time() - 3600)
    for _ in range(3):
        passes.once()
    assert (state_of(ready), only(ready).pid, only(ready).crashes) == (S.READY, found.pid, 0)


def test_a_process_whose_row_counts_as_stopped_is_ended(ready: ServedModel, passes: Passes) -> None:
    found = living(only(ready))
    want(ready, 0)
    Instance.objects.update(state=S.STOPPED)
    assert found is not None
    passes.until(lambda: not Instance.objects.filter(pid__isnull=False).exists())
    assert not found.is_running()


def test_a_process_without_a_row_is_ended_when_the_worker_starts(ready: ServedModel) -> None:
    instance = only(ready)
    found = living(instance)
    assert instance_log.path_of(str(instance.pk)).exists()
    lifecycle.tidy()
    assert found is not None
    assert found.is_running()
    Instance.objects.all().delete()
    lifecycle.tidy()
    found.wait(5)
    assert not instance_log.path_of(str(instance.pk)).exists()


def test_slots_of_what_ended_unseen_do_not_stay_on_the_disk(node: Node, served: ServedModel) -> None:
    failed = Instance.objects.create(served=served, node=node, state=S.FAILED)
    gone = Instance.objects.create(served=served, node=node, state=S.BACKING_OFF)
    kept, left = (launch.slots_of(str(one.pk)) for one in (failed, gone))
    for folder in (kept, left):
        folder.mkdir(parents=True)
        (folder / "conversation").write_bytes(b"saved")
    gone.move_to(S.STOPPED, "Not wanted any more.")
    lifecycle.tidy()
    assert kept.exists()
    assert not left.exists()
    failed.delete()
    lifecycle.tidy()
    assert not kept.exists()


def test_a_replica_that_can_listen_nowhere_says_why(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    ServedModel.objects.update(host="192.0.2.7")
    want(served, 1)
    for _ in range(2):
        passes.once()
    assert state_of(served) == S.PENDING
    assert "This machine has no address 192.0.2.7" in only(served).reason
    ServedModel.objects.update(host="")
    passes.until(lambda: state_of(served) == S.READY)


def test_an_orderly_end_stops_the_processes_and_keeps_the_wish(
    ready: ServedModel, node: Node, passes: Passes
) -> None:
    found = living(only(ready))
    assert lifecycle.stop_all(node.name) == 1
    assert found is not None
    assert not found.is_running()
    assert state_of(ready) == "stopped"
    passes.until(lambda: state_of(ready) == S.READY)


def test_more_replicas_get_ports_and_keys_of_their_own(ready: ServedModel, passes: Passes) -> None:
    want(ready, 2)
    passes.until(lambda: ready.instances.serving().count() == 2)
    one, two = ready.instances.serving()
    assert one.port != two.port
    assert one.api_key != two.api_key
    want(ready, 1)
    passes.until(lambda: ready.instances.current().count() == 1)


def test_a_missing_file_is_waited_for_with_a_reason(ready: ServedModel, passes: Passes) -> None:
    path = Path(ready.file.path)
    path.unlink()
    os.kill(only(ready).pid or 0, signal.SIGKILL)
    passes.until(lambda: "isn't there" in only(ready).reason)
    assert state_of(ready) == S.PENDING
    path.write_bytes(b"GGUF")
    passes.until(lambda: state_of(ready) == S.READY)


@pytest.mark.parametrize(
    ("binary", "reason"),
    [("/nowhere/llama-server", "isn't a program"), ("/bin/true", "isn't a llama-server")],
)
def test_a_wrong_binary_fails_with_a_sentence(
    binary: str, reason: str, served: ServedModel, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", binary)
    want(served, 1)
    passes.once()
    assert state_of(served) == S.FAILED
    assert reason in only(served).reason


def test_a_model_too_large_for_the_machine_waits_with_a_reason(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    served.file.metadata = {
        "values": {},
        "tensor_bytes": 2**50,
        "embedding_bytes": 0,
        "tied_output": False,
        "parts": 1,
    }
    served.file.save()
    want(served, 1)
    passes.once()
    assert state_of(served) == S.PENDING
    assert "of memory" in only(served).reason


def test_a_flag_that_is_not_allowed_fails_with_a_sentence(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    ServedModel.objects.update(extra_flags=["--tools"])
    want(served, 1)
    passes.once()
    assert state_of(served) == S.FAILED
    assert "--tools" in only(served).reason


def test_a_key_sealed_with_another_secret_leads_to_a_new_start(ready: ServedModel, passes: Passes) -> None:
    old = only(ready).pid
    Instance.objects.update(api_key_encrypted=b"x")
    passes.until(lambda: state_of(ready) == S.READY and only(ready).pid != old)
