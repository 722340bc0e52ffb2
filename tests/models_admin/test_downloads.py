"""Downloads from a local hub, with real threads, processes and files."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import AuditEntry, User
from llamaproj import env
from llamaproj.errors import Conflict, InvalidInput
from models_admin import notes
from models_admin.errors import HubUnreachable
from models_admin.files import model_folder
from models_admin.hub import actions, downloads
from models_admin.hub import tasks as download_tasks
from models_admin.hub.transfer import Patience
from models_admin.models import Download, ModelFile, Node
from models_admin.states import DownloadState as S
from tests.hub_server import HubServer, Script
from tests.models_admin import gguf_files

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

HASTY = Patience(connect=2, silent=2, tries=3, wait_first=0.05, wait_longest=0.2)
REPO, FILE = "owner/Tiny-GGUF", "Tiny-Q8_0.gguf"


def model(seed: int, columns: int = 1024) -> bytes:
    """A model of 3 MB (by default) that no other seed gives."""
    tensor = gguf_files.tensor("token_embd.weight", columns, 768)
    pairs = [
        gguf_files.word("general.architecture", "llama"),
        gguf_files.word("general.name", f"Tiny {seed}"),
    ]
    data = gguf_files.whole(pairs, [tensor], 0)
    return data + random.Random(seed).randbytes(columns * 768 * 4)


DATA = model(1)


@pytest.fixture
def server(monkeypatch):
    with HubServer() as server:
        monkeypatch.setattr(env, "HF_ENDPOINT", server.endpoint)
        server.put(REPO, FILE, DATA)
        yield server


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    monkeypatch.setattr(env, "MODELS_DIRS", [folder])
    return folder


@pytest.fixture
def sent(monkeypatch):
    """What was sent to nodes' queues instead of being sent."""
    sent: list = []
    monkeypatch.setattr(download_tasks, "send", lambda name, pk: sent.append((name, pk)))
    return sent


@pytest.fixture
def node(folder, sent):
    return Node.objects.create(name=env.NODE_NAME, memory_bytes=2**34, last_seen=timezone.now())


@pytest.fixture
def download(server, node):
    return actions.ask(node, REPO, FILE, by=None)


def run(download: Download) -> Download:
    downloads.run(download.pk, HASTY)
    download.refresh_from_db()
    return download


def start(download: Download) -> threading.Thread:
    """One attempt in a thread, as a worker has it."""

    def attempt() -> None:
        downloads.run(download.pk, HASTY)
        connection.close()

    thread = threading.Thread(target=attempt)
    thread.start()
    return thread


def until(done, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.is_file()]


def target(folder: Path, path: str = FILE) -> Path:
    return folder / REPO / path


# The way it should go


def test_a_file_is_fetched_checked_and_found_by_the_catalog(download, server, node, folder, sent):
    assert sent == [(node.name, download.pk)]
    assert run(download).state == S.DONE, download.reason
    assert target(folder).read_bytes() == DATA
    assert hidden(folder) == []
    assert download.done_bytes == download.size_bytes == len(DATA)
    file = ModelFile.objects.get(node=node)
    assert (file.path, file.error, file.name) == (str(target(folder)), "", "Tiny 1")
    assert run(download).state == S.DONE
    assert len(server.requests) == 1


def test_the_token_goes_to_the_hub_and_not_to_its_storage(server, node, folder, monkeypatch):
    server.put("owner/gated", FILE, model(7), gated=True)
    monkeypatch.setattr(env, "HF_TOKEN", server.token)
    assert run(actions.ask(node, "owner/gated", FILE, by=None)).state == S.DONE
    ((path, _, authorization),) = server.requests
    assert path.startswith("/storage/")
    assert authorization == ""


def test_a_small_file_that_the_hub_keeps_in_git_is_checked_too(server, node, folder):
    server.put("owner/small", "small.gguf", gguf_files.small_model())
    download = actions.ask(node, "owner/small", "small.gguf", by=None)
    assert download.files[0]["sha256"] == ""
    server.scripts.append(Script(wrong=True))
    assert run(download).state == S.FAILED
    actions.retry(download, by=None)
    assert run(download).state == S.DONE
    assert (folder / "owner/small/small.gguf").read_bytes() == gguf_files.small_model()


def test_all_parts_and_the_projector_come_and_lie_together(server, node, folder):
    parts = [f"Q4/Big-Q4_0-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for number, path in enumerate([*parts, "mmproj-F16.gguf"]):
        server.put("owner/Big", path, model(number + 20, 64))
    download = actions.ask(node, "owner/Big", parts[0], projector="mmproj-F16.gguf", by=None)
    assert run(download).state == S.DONE, download.reason
    names = ["Big-Q4_0-00001-of-00003.gguf", "Big-Q4_0-00002-of-00003.gguf", "Big-Q4_0-00003-of-00003.gguf"]
    there = sorted(path.name for path in (folder / "owner/Big/Q4").iterdir())
    assert there == [*names, "mmproj-F16.gguf"]
    assert (folder / "owner/Big/Q4" / names[2]).read_bytes() == model(22, 64)


def test_asking_twice_is_asking_once(download, node):
    assert actions.ask(node, REPO, FILE, by=None) == download
    assert Download.objects.count() == AuditEntry.objects.filter(verb="download.ask").count() == 1


# Interruptions


def test_a_cut_connection_goes_on_where_it_stopped(download, server, folder):
    server.scripts += [Script(cut_after=1_000_000), Script(cut_after=500_000), Script(status=503)]
    assert run(download).state == S.DONE, download.reason
    assert target(folder).read_bytes() == DATA
    assert [header for _, header, _ in server.requests] == [
        "bytes=0-",
        "bytes=1000000-",
        "bytes=1500000-",
        "bytes=1500000-",
    ]
    assert sum(server.sent) == len(DATA)


def test_a_hub_that_stops_sending_is_given_up_and_retry_goes_on(download, server, folder):
    server.scripts += [Script(cut_after=2_000_000), *[Script(cut_after=0)] * 3]
    assert run(download).state == S.FAILED
    assert "stopped sending" in download.reason
    assert download.done_bytes == 2_000_000
    assert not target(folder).exists()
    actions.retry(download, by=None)
    assert run(download).state == S.DONE
    assert server.requests[-1][1] == "bytes=2000000-"
    assert target(folder).read_bytes() == DATA


def test_a_hub_without_ranges_sends_all_again(download, server, folder):
    server.scripts += [Script(cut_after=1_000_000, no_ranges=True), Script(no_ranges=True)]
    assert run(download).state == S.DONE
    assert target(folder).read_bytes() == DATA
    assert sum(server.sent) == len(DATA) + 1_000_000


def test_a_killed_worker_is_succeeded_and_nothing_is_fetched_twice(download, server, node, folder, tmp_path):
    server.every = Script(bytes_per_s=700_000)
    database = connection.settings_dict
    url = f"postgresql://{database['USER']}@/{database['NAME']}?host={database['HOST']}"
    program = (
        "import django; django.setup()\n"
        "from uuid import UUID; from models_admin.hub import downloads\n"
        f"downloads.run(UUID('{download.pk}'))"
    )
    variables = {
        "DATABASE_URL": url,
        "MODELS_DIR": str(folder),
        "HF_ENDPOINT": server.endpoint,
        "DJANGO_SETTINGS_MODULE": "llamaproj.settings",
    }
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **variables},
            cwd=env.BASE_DIR,
            stdout=log,
            stderr=log,
        )
        try:
            until(lambda: Download.objects.get().done_bytes > 500_000 or worker.poll() is not None)
            assert worker.poll() is None, (tmp_path / "log").read_text()
            # As long as it lives, nobody else touches its file.
            assert not downloads.run(download.pk, HASTY)
            os.kill(worker.pid, signal.SIGKILL)
        finally:
            worker.kill()
            worker.wait()
    download.refresh_from_db()
    assert download.state == S.RUNNING
    there = next(target(folder).parent.glob(".*.part")).stat().st_size
    assert there > 500_000
    assert downloads.waiting(node) == [download.pk]
    server.every = None
    assert run(download).state == S.DONE
    assert server.requests[-1][1] == f"bytes={there}-"
    assert hashlib.sha256(target(folder).read_bytes()).digest() == hashlib.sha256(DATA).digest()


def test_a_worker_that_is_asked_to_end_leaves_it_to_the_next(download, server, node, folder, monkeypatch):
    monkeypatch.setattr(downloads, "_stopping", threading.Event())
    server.every = Script(bytes_per_s=500_000)
    thread = start(download)
    until(lambda: Download.objects.get().done_bytes > 0)
    downloads.stop_all()
    thread.join(5)
    assert not thread.is_alive()
    assert not downloads.run(download.pk, HASTY)
    download.refresh_from_db()
    assert (download.state, "back" in download.reason) == (S.QUEUED, True)
    monkeypatch.setattr(downloads, "_stopping", threading.Event())
    assert downloads.waiting(node) == [download.pk]
    server.every = None
    assert run(download).state == S.DONE
    assert target(folder).read_bytes() == DATA


# What is wrong


def test_a_wrong_checksum_fails_and_leaves_nothing(download, server, folder):
    server.scripts.append(Script(wrong=True))
    assert run(download).state == S.FAILED
    assert "checksum is wrong" in download.reason
    assert hidden(folder) == []
    assert not target(folder).exists()
    assert download.done_bytes == 0
    actions.retry(download, by=None)
    assert run(download).state == S.DONE


def test_a_file_that_changes_on_the_hub_is_not_mixed(download, server, node, folder):
    server.scripts += [Script(cut_after=1_000_000), *[Script(cut_after=0)] * 3]
    run(download)
    changed = model(2)
    server.put(REPO, FILE, changed)
    # The old one goes on at its commit; the new one begins anew beside it.
    newer = actions.ask(node, REPO, FILE, by=None)
    assert newer != download
    assert len(hidden(folder)) == 1
    assert run(newer).state == S.DONE
    assert target(folder).read_bytes() == changed
    actions.retry(download, by=None)
    assert run(download).state == S.FAILED
    assert "There is another file named" in download.reason
    assert target(folder).read_bytes() == changed


def test_other_content_under_the_same_commit_is_noticed_before_a_byte_is_taken(download, server, folder):
    server.repos[REPO].commits[download.revision][FILE] = changed = model(3)
    server._lfs[hashlib.sha256(changed).hexdigest()] = changed
    assert run(download).state == S.FAILED
    assert "has changed on the hub" in download.reason
    assert hidden(folder) == []


def test_a_file_that_is_there_already_is_kept_and_counts(download, server, folder):
    target(folder).parent.mkdir(parents=True)
    target(folder).write_bytes(DATA)
    assert run(download).state == S.DONE
    assert server.requests == []


@pytest.mark.parametrize("other", [b"something of mine", bytes(len(DATA))])
def test_another_file_of_that_name_is_never_overwritten(download, server, folder, other):
    target(folder).parent.mkdir(parents=True)
    target(folder).write_bytes(other)
    assert run(download).state == S.FAILED
    assert "There is another file named" in download.reason
    assert target(folder).read_bytes() == other


def test_links_out_of_the_folder_are_not_followed(download, server, folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    folder.mkdir()
    (folder / "owner").symlink_to(outside)
    assert run(download).state == S.FAILED
    assert "can't be written" in download.reason
    assert list(outside.iterdir()) == []


def test_a_link_in_the_files_place_is_not_followed(download, server, folder, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    target(folder).parent.mkdir(parents=True)
    target(folder).symlink_to(outside)
    assert run(download).state == S.FAILED
    assert "something else named" in download.reason
    assert outside.read_bytes() == b"mine"


def test_a_row_with_a_hostile_path_writes_nothing(download, server, folder, tmp_path):
    for path in ("../evil.gguf", "/tmp/evil.gguf", "owner/.ssh/evil.gguf", "owner/../../evil.gguf"):
        file = {**download.files[0], "target": path}
        Download.objects.update(files=[file], state=S.QUEUED)
        assert run(download).state == S.FAILED
        assert "can't be used" in download.reason
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    ("status", "words"), [(403, "accepted its terms"), (404, "The hub has no owner/Tiny-GGUF/Tiny-Q8_0.gguf")]
)
def test_refusals_end_it_at_once(download, server, status, words):
    server.scripts.append(Script(status=status))
    assert run(download).state == S.FAILED
    assert words in download.reason
    assert len(server.requests) == 1


def test_a_gated_repository_names_the_token(server, node):
    server.put("owner/gated", FILE, model(7), gated=True)
    download = run(actions.ask(node, "owner/gated", FILE, by=None))
    assert download.state == S.FAILED
    assert "HF_TOKEN" in download.reason


def test_a_busy_hub_is_asked_again_when_it_says(download, server):
    server.scripts += [Script(status=429, retry_after=0), Script(status=500)]
    assert run(download).state == S.DONE
    assert len(server.requests) == 3


def test_a_full_disk_is_said_before_a_byte_is_fetched(download, server, monkeypatch):
    monkeypatch.setattr(model_folder, "free_bytes", lambda: downloads.RESERVE_BYTES + len(DATA) - 1)
    assert run(download).state == S.FAILED
    assert "too little room" in download.reason
    assert "1.0 GiB stay free" in download.reason
    assert server.requests == []


def test_other_downloads_room_is_theirs(download, server, node, monkeypatch):
    monkeypatch.setattr(model_folder, "free_bytes", lambda: downloads.RESERVE_BYTES + len(DATA) + 10)
    Download.objects.create(node=node, repository="o/p", state=S.RUNNING, size_bytes=100, done_bytes=50)
    assert run(download).state == S.FAILED
    assert "other downloads need" in download.reason


def test_a_disk_that_fills_up_meanwhile_stops_it_and_retry_goes_on(download, server, folder, monkeypatch):
    server.every = Script(bytes_per_s=800_000)
    free = downloads.RESERVE_BYTES + len(DATA)
    monkeypatch.setattr(model_folder, "free_bytes", lambda: free)
    thread = start(download)
    until(lambda: Download.objects.get().done_bytes > 0)
    free = downloads.RESERVE_BYTES - 1
    thread.join(5)
    download.refresh_from_db()
    assert download.state == S.FAILED
    assert "almost full" in download.reason
    free = downloads.RESERVE_BYTES + len(DATA)
    server.every = None
    actions.retry(download, by=None)
    assert run(download).state == S.DONE
    assert target(folder).read_bytes() == DATA


# Cancelling


@pytest.mark.parametrize(
    "script", [Script(bytes_per_s=500_000), Script(stall_after=300_000), Script(stall_after=0)]
)
def test_cancel_ends_it_within_a_second_and_leaves_nothing(download, server, node, folder, script):
    server.every = script
    thread = start(download)
    until(lambda: server.requests and (script.stall_after == 0 or Download.objects.get().done_bytes > 0))
    began = time.monotonic()
    actions.cancel(download, by=None)
    thread.join(30)
    assert time.monotonic() - began < 1.5
    download.refresh_from_db()
    assert (download.state, download.done_bytes) == (S.CANCELLED, 0)
    assert list(folder.rglob("*.*")) == []
    assert downloads.waiting(node) == []
    server.every = None
    actions.retry(download, by=None)
    assert run(download).state == S.DONE


def test_what_a_failed_or_abandoned_one_left_is_thrown_away_on_its_node(download, server, node, folder, sent):
    server.scripts += [Script(cut_after=1_000_000), *[Script(cut_after=0)] * 3]
    assert run(download).state == S.FAILED
    assert len(hidden(folder)) == 1
    sent.clear()
    actions.cancel(download, by=None)
    assert sent == [(node.name, download.pk)]
    assert downloads.waiting(node) == [download.pk]
    run(download)
    assert list(folder.rglob("*.*")) == []
    assert downloads.waiting(node) == []


def test_a_complete_one_can_be_neither_cancelled_nor_retried(download, server, folder):
    run(download)
    for verb in (actions.cancel, actions.retry):
        with pytest.raises(Conflict):
            verb(download, by=None)
    assert target(folder).exists()


# Several


def test_two_at_once_and_the_third_waits(server, node, folder):
    server.every = Script(bytes_per_s=1_000_000)
    rows = []
    for number in range(3):
        server.put(REPO, f"m{number}-Q8_0.gguf", model(30 + number, 256))
        rows.append(actions.ask(node, REPO, f"m{number}-Q8_0.gguf", by=None))
    assert downloads.waiting(node) == [rows[0].pk, rows[1].pk]
    threads = [start(rows[0]), start(rows[1])]
    until(lambda: Download.objects.filter(state=S.RUNNING).count() == 2)
    assert downloads.waiting(node) == []
    assert not downloads.run(rows[2].pk, HASTY)
    for thread in threads:
        thread.join(60)
    assert downloads.waiting(node) == [rows[2].pk]
    download_tasks.fetch(str(rows[2].pk))
    assert set(Download.objects.values_list("state", flat=True)) == {S.DONE}


def test_the_end_of_one_sends_the_next(download, server, node, sent):
    other = Download.objects.create(node=node, repository="o/p", files=download.files)
    sent.clear()
    download_tasks.fetch(str(download.pk))
    assert sent == [(node.name, other.pk)]
    sent.clear()
    download_tasks.fetch(str(download.pk))
    assert sent == []


def test_progress_is_noted_while_it_runs(download, server):
    server.every = Script(bytes_per_s=1_000_000)
    thread = start(download)
    until(lambda: (notes.download_of(download.pk)[0] or 0) > 0)
    rate, waits_for = notes.download_of(download.pk)
    assert 300_000 < rate < 3_000_000
    assert waits_for == ""
    assert 0 < Download.objects.get().percent < 100
    thread.join(60)


def test_another_nodes_download_is_left_alone(download, server, folder):
    Node.objects.update(name="elsewhere")
    assert not downloads.run(download.pk, HASTY)
    assert not folder.exists()


# Asking


def test_asking_is_refused_for_what_cannot_be(server, node):
    by = User.objects.create_superuser("boss")
    with pytest.raises(InvalidInput):
        actions.ask(node, "../..", FILE, by=by)
    Node.objects.update(last_seen=None)
    node.refresh_from_db()
    with pytest.raises(Conflict, match="doesn't answer"):
        actions.ask(node, REPO, FILE, by=by)
    server.api_status = 500
    with pytest.raises(HubUnreachable):
        actions.ask(node, REPO, FILE, by=by)
    assert not Download.objects.exists()
    assert not AuditEntry.objects.exists()
