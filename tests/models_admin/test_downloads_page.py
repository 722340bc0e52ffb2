"""The downloads page, its socket, its command and its place in the admin site."""

import io
import json
from http import HTTPStatus
from uuid import uuid4

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts.models import AuditEntry, User
from llamaproj import env
from models_admin import events, notes
from models_admin.consumers import ModelsConsumer
from models_admin.hub import downloads, remote_header
from models_admin.hub import tasks as download_tasks
from models_admin.models import Download, ModelFile, Node, ServedModel
from models_admin.states import DownloadState as S
from tests.hub_server import HubServer, Script
from tests.models_admin import gguf_files

pytestmark = pytest.mark.django_db
GIB = 2**30
REPO = "owner/Tiny-GGUF"


def model(rows: int) -> bytes:
    """A llama of 4 layers whose cache takes 8 KiB a token."""
    pairs = [
        gguf_files.word("general.architecture", "llama"),
        gguf_files.number("llama.block_count", 4),
        gguf_files.number("llama.context_length", 8192),
        gguf_files.number("llama.embedding_length", 512),
        gguf_files.number("llama.attention.head_count", 8),
        gguf_files.number("llama.attention.head_count_kv", 8),
    ]
    return gguf_files.whole(pairs, [gguf_files.tensor("token_embd.weight", 512, rows)], 512 * rows * 4)


@pytest.fixture
def server(monkeypatch):
    cache.clear()
    with HubServer() as server:
        monkeypatch.setattr(env, "HF_ENDPOINT", server.endpoint)
        server.put(REPO, "Tiny-Q4_0.gguf", model(512))
        server.put(REPO, "Tiny-Q8_0.gguf", model(1024))
        yield server


@pytest.fixture
def node(monkeypatch, tmp_path):
    monkeypatch.setattr(env, "MODELS_DIRS", [tmp_path / "models"])
    monkeypatch.setattr(download_tasks, "send", lambda name, pk: None)
    return Node.objects.create(name=env.NODE_NAME, memory_bytes=16 * GIB, last_seen=timezone.now())


@pytest.fixture
def download(node):
    file = {
        "path": "Tiny-Q4_0.gguf",
        "target": f"{REPO}/Tiny-Q4_0.gguf",
        "size_bytes": 1000,
        "sha256": "0" * 64,
    }
    return Download.objects.create(
        node=node, repository=REPO, revision="c0ffee", files=[{**file, "git_sha1": ""}], size_bytes=1000
    )


def html(response) -> str:
    assert response.status_code == HTTPStatus.OK, response.content
    return response.content.decode()


def test_the_empty_page_says_what_belongs_here(staff, node):
    page = html(staff.get("/models/downloads/"))
    assert "Nothing downloaded yet" in page
    assert 'role="search"' in page
    assert "/models/downloads/" in html(staff.get("/models/"))


def test_a_search_shows_repositories_and_says_when_there_are_none(staff, node, server):
    server.put("owner/gated-tiny", "a-Q4_0.gguf", model(8), gated=True)
    page = html(staff.get("/models/downloads/?q=tiny"))
    assert "owner/Tiny-GGUF" in page
    assert "terms to accept" in page
    fragment = staff.get("/models/downloads/?q=zebra", headers={"HX-Request": "true"})
    assert "HX-Request" in fragment.headers["Vary"]
    assert html(fragment).startswith('<div id="hub">')
    assert "No repository with GGUF files has “zebra”" in html(fragment)


def test_an_offline_hub_is_one_sentence_and_the_page_stays(staff, download, monkeypatch):
    page = html(staff.get("/models/downloads/?q=tiny"))
    assert "The hub 127.0.0.1 can&#x27;t be reached from here" in page
    assert "Tiny-Q4_0.gguf" in page


def test_a_gated_repository_names_the_token_unless_there_is_one(staff, node, server, monkeypatch):
    server.put("owner/gated", "a-Q4_0.gguf", model(8), gated=True)
    assert "set HF_TOKEN" in html(staff.get("/models/downloads/?repository=owner/gated"))
    monkeypatch.setattr(env, "HF_TOKEN", server.token)
    page = html(staff.get("/models/downloads/?repository=owner/gated"))
    assert "set HF_TOKEN" not in page
    assert server.token not in page


def test_each_quantisation_is_judged_for_each_machine_by_the_models_header(staff, node, server):
    # 4 slots of 4,096 tokens take 128 MiB of cache; 256 MiB are kept for prompts and 48 are the process.
    Node.objects.create(name="medium", memory_limit_bytes=400 * 2**20, last_seen=timezone.now())
    Node.objects.create(name="small", memory_limit_bytes=200 * 2**20, last_seen=timezone.now())
    Node.objects.create(name="silent", memory_bytes=16 * GIB)
    page = html(staff.get(f"/models/downloads/?repository={REPO}"))
    assert page.count(f"{env.NODE_NAME}: fits</span>") == 2
    assert page.count("medium: fits with less context: ") == 2
    assert page.count("small: doesn&#x27;t fit</span>") == 2
    assert "silent" not in page
    assert "by its size alone" not in page
    # One header for both, and never again for this commit.
    assert len(server.requests) == 1
    html(staff.get(f"/models/downloads/?repository={REPO}"))
    assert len(server.requests) == 1


def test_without_a_header_the_size_has_to_do_and_the_page_says_so(staff, node, server):
    server.every = Script(status=503)
    page = html(staff.get(f"/models/downloads/?repository={REPO}"))
    assert page.count("by its size alone") == 2
    assert page.count("fits</span>") == 2


def test_a_header_longer_than_what_was_fetched_is_not_believed(staff, node, server, monkeypatch):
    monkeypatch.setattr(remote_header, "_BEGINNING_BYTES", 100)
    assert "by its size alone" in html(staff.get(f"/models/downloads/?repository={REPO}"))


def test_download_is_a_button_with_and_without_javascript(staff, node, server):
    page = html(staff.get(f"/models/downloads/?repository={REPO}"))
    assert 'action="/models/downloads/ask/"' in page
    fields = {"repository": REPO, "path": "Tiny-Q4_0.gguf", "node": node.name}
    answer = staff.post("/models/downloads/ask/", fields)
    assert answer.headers["Location"] == "/models/downloads/"
    fields["path"] = "Tiny-Q8_0.gguf"
    fragment = html(staff.post("/models/downloads/ask/", fields, headers={"HX-Request": "true"}))
    assert fragment.startswith('<div id="downloads"')
    assert "Tiny-Q4_0.gguf" in fragment
    assert fragment.count('role="progressbar"') == 2
    first, second = Download.objects.order_by("created_at")
    assert first.asked_by.username == "boss"
    assert second.files[0]["target"] == f"{REPO}/Tiny-Q8_0.gguf"
    assert AuditEntry.objects.filter(verb="download.ask").count() == 2
    for wrong in (
        {"path": "../evil.gguf"},
        {"node": "nowhere"},
        {"repository": "owner/none"},
        {"repository": "../.."},
    ):
        assert staff.post("/models/downloads/ask/", fields | wrong).status_code in {400, 404, 409}, wrong
    assert Download.objects.count() == 2


def test_a_running_one_shows_how_far_it_is_and_what_it_waits_for(staff, download):
    Download.objects.update(state=S.RUNNING, done_bytes=250)
    notes.tell_download(download.pk, 25.0, "")
    page = html(staff.get("/models/downloads/"))
    assert 'aria-valuenow="25"' in page
    for words in ("25 %", "25 B/s", "30 s left", "downloading", "Cancel"):
        assert words in page
    notes.tell_download(download.pk, 0.0, "no connection; trying again")
    assert "no connection; trying again" in html(staff.get("/models/downloads/"))


def test_a_failed_one_says_why_and_offers_retry_and_remove(staff, download):
    Download.objects.update(state=S.FAILED, reason="The checksum is wrong.", done_bytes=0)
    page = html(staff.get("/models/downloads/"))
    assert "The checksum is wrong." in page
    assert ">Retry<" in page
    html(staff.post(f"/models/downloads/{download.pk}/retry/", headers={"HX-Request": "true"}))
    download.refresh_from_db()
    assert (download.state, download.reason) == (S.QUEUED, "")
    html(staff.post(f"/models/downloads/{download.pk}/cancel/", headers={"HX-Request": "true"}))
    download.refresh_from_db()
    assert download.state == S.CANCELLED
    assert "Download again" in html(staff.get("/models/downloads/"))


def test_a_complete_one_can_be_served_from_there(staff, download, node):
    Download.objects.update(state=S.DONE, ended_at=timezone.now())
    path = f"/srv/models/{REPO}/Tiny-Q4_0.gguf"
    file = ModelFile.objects.create(node=node, path=path, size_bytes=1000, modified_at=timezone.now())
    assert f'href="/models/add/{file.pk}/">Serve' in html(staff.get("/models/downloads/"))
    ModelFile.objects.update(error="This isn't a GGUF file.")
    assert "This isn&#x27;t a GGUF file." in html(staff.get("/models/downloads/"))
    ModelFile.objects.update(error="")
    ServedModel.objects.create(slug="tiny", name="Tiny", file=file)
    assert "Served as tiny" in html(staff.get("/models/downloads/"))
    assert staff.post(f"/models/downloads/{download.pk}/cancel/").status_code == HTTPStatus.CONFLICT


def test_members_and_strangers_see_and_do_nothing(client, download):
    paths = [("get", "/models/downloads/"), ("post", "/models/downloads/ask/")]
    paths += [("post", f"/models/downloads/{download.pk}/{verb}/") for verb in ("cancel", "retry")]
    for method, path in paths:
        assert getattr(client, method)(path).status_code == HTTPStatus.FOUND
    client.force_login(User.objects.create_user("member"))
    for method, path in paths:
        assert getattr(client, method)(path).status_code == HTTPStatus.FORBIDDEN, path
    assert "/models/downloads/" not in html(client.get("/models/"))
    download.refresh_from_db()
    assert download.state == S.QUEUED


def test_what_is_not_there_is_404(staff, node):
    assert staff.post(f"/models/downloads/{uuid4()}/cancel/").status_code == HTTPStatus.NOT_FOUND


@pytest.mark.django_db(transaction=True)
async def test_progress_comes_over_the_socket_to_managers_only():
    boss = await database_sync_to_async(User.objects.create_superuser)("boss")
    member = await database_sync_to_async(User.objects.create_user)("member")
    sockets = []
    for user in (boss, member):
        socket = WebsocketCommunicator(ModelsConsumer.as_asgi(), "/ws/models/?page=downloads")
        socket.scope["user"] = user
        assert (await socket.connect())[0]
        sockets.append(socket)
    first = json.loads(await sockets[0].receive_from())
    assert (first["target"], "Nothing downloaded yet" in first["content"]) == ("#downloads", True)
    assert (await sockets[1].receive_output())["type"] == "websocket.close"

    def begin() -> None:
        node = Node.objects.create(name="far")
        file = {"path": "a.gguf", "target": "o/n/a.gguf", "size_bytes": 10, "sha256": "", "git_sha1": ""}
        Download.objects.create(node=node, repository="o/n", files=[file], size_bytes=10, state=S.RUNNING)
        events.downloads_changed()

    await database_sync_to_async(begin)()
    assert "a.gguf" in json.loads(await sockets[0].receive_from())["content"]
    for socket in sockets:
        await socket.disconnect()


# The command line


def command(*words: str) -> str:
    out = io.StringIO()
    call_command("models", *words, stdout=out)
    return out.getvalue()


def test_the_command_downloads_by_quantisation_or_by_file_and_lists(node, server):
    assert "Tiny-Q4_0.gguf" in command("download", REPO, "q4_0")
    command("download", REPO, "Tiny-Q8_0.gguf", "--node", node.name)
    assert Download.objects.count() == 2
    Download.objects.filter(files__0__path="Tiny-Q4_0.gguf").update(
        state=S.FAILED, reason="The disk is full."
    )
    listed = command("downloads")
    assert "queued" in listed
    assert "The disk is full." in listed


def test_the_command_cancels_and_retries_by_the_beginning_of_a_number(download):
    number = str(download.pk)[:8]
    assert number in command("downloads")
    command("cancel-download", number)
    download.refresh_from_db()
    assert download.state == S.CANCELLED
    command("retry-download", number.upper())
    download.refresh_from_db()
    assert download.state == S.QUEUED
    assert [entry.verb for entry in AuditEntry.objects.order_by("at")][-2:] == [
        "download.cancel",
        "download.retry",
    ]
    with pytest.raises(CommandError, match="no download"):
        command("cancel-download", "zzz")
    Download.objects.update(state=S.DONE)
    with pytest.raises(CommandError, match="complete"):
        command("cancel-download", number)


def test_the_command_refuses_in_a_sentence(node, server):
    with pytest.raises(CommandError, match="Q4_0, Q8_0"):
        command("download", REPO, "Q3_K")
    with pytest.raises(CommandError, match="no node"):
        command("download", REPO, "Q4_0", "--node", "nowhere")
    with pytest.raises(CommandError, match="owner/name"):
        command("download", "../..", "Q4_0")


# The admin site


def test_the_admin_site_shows_downloads_and_acts_through_the_same_actions(staff, download):
    Download.objects.update(state=S.FAILED, reason="The disk is full.")
    assert "The disk is full." in html(staff.get("/admin/models_admin/download/"))
    fields = {"action": "retry_downloads", "_selected_action": [str(download.pk)]}
    staff.post("/admin/models_admin/download/", fields)
    download.refresh_from_db()
    assert download.state == S.QUEUED
    staff.post("/admin/models_admin/download/", fields | {"action": "cancel_downloads"})
    download.refresh_from_db()
    assert download.state == S.CANCELLED
    assert AuditEntry.objects.filter(verb="download.cancel", by__username="boss").exists()
    assert downloads.waiting(download.node) == [download.pk]


def test_the_admin_site_has_a_model_fetched(staff, node, server):
    where = "/admin/models_admin/download/add/"
    said = {"node": node.pk, "repository": REPO, "path": "Tiny-Q4_0.gguf", "projector": ""}
    assert "As the hub names it" in html(staff.get(where))
    refused = staff.post(where, said | {"path": "nothing.gguf"})
    assert refused.context["adminform"].form.errors
    assert not Download.objects.exists()
    assert staff.post(where, said).status_code == HTTPStatus.FOUND
    asked = Download.objects.get()
    assert (asked.file_name, asked.node, asked.state) == ("Tiny-Q4_0.gguf", node, S.QUEUED)
    assert AuditEntry.objects.filter(verb="download.ask", by__username="boss").exists()
    assert staff.get(f"/admin/models_admin/download/{asked.pk}/change/").status_code == HTTPStatus.OK
