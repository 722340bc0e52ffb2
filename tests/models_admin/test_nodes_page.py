"""The nodes page, its forms and its socket."""

import asyncio
import io
import json
import re
from datetime import timedelta
from http import HTTPStatus

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from django.test import Client

from accounts.models import AuditEntry, User
from llamaproj.errors import Conflict
from models_admin import events, tasks
from models_admin.models import Instance, ModelFile, Node, PortalConfig, ServedModel
from models_admin.nodes import actions as node_actions
from models_admin.nodes import memory_map
from models_admin.nodes import overview as node_overview
from models_admin.nodes.consumer import NodesConsumer
from models_admin.nodes.memory_map import Kind
from models_admin.states import InstanceState as S

pytestmark = pytest.mark.django_db
GIB = 2**30


@pytest.fixture(autouse=True)
def nobody_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "wake", lambda name: None)


@pytest.fixture
def machine(node: Node) -> Node:
    """The test's node with 16 GiB, of which 6 are free, alive."""
    Node.objects.update(
        memory_bytes=16 * GIB,
        memory_free_bytes=6 * GIB,
        engine="llama-server 6543",
        labels=["big"],
        last_seen=Now(),
    )
    return Node.objects.get()


def silent(node: Node, for_: timedelta = timedelta(minutes=3)) -> None:
    Node.objects.filter(pk=node.pk).update(last_seen=Now() - for_)


def replica(served: ServedModel, node: Node, state: S = S.READY, **fields: object) -> Instance:
    return Instance.objects.create(served=served, node=node, state=state, **fields)


# The memory map -----------------------------------------------------------------------------------------------------


def shares(node: Node) -> dict[tuple[str, str], int]:
    bars = memory_map.bars_of(
        node, Instance.objects.order_by("created_at"), PortalConfig.current().memory_reserve_mib * 2**20
    )
    return {(share.kind, share.label): share.bytes for share in bars[0].shares}


def test_the_bar_is_cut_into_replicas_others_free_and_reserve(machine: Node, served: ServedModel) -> None:
    replica(served, machine, memory_bytes=3 * GIB)
    replica(served, machine, memory_bytes=2 * GIB)
    replica(served, machine, S.STOPPED, memory_bytes=9 * GIB)
    bars = memory_map.bars_of(machine, Instance.objects.order_by("created_at"), GIB)
    (bar,) = bars
    assert [(share.kind, share.bytes // GIB, share.hue) for share in bar.shares] == [
        (Kind.REPLICA, 3, 1),
        (Kind.REPLICA, 2, 2),
        (Kind.OTHER, 5, 0),
        (Kind.FREE, 5, 0),
        (Kind.RESERVE, 1, 0),
    ]
    assert sum(share.width for share in bar.shares) == pytest.approx(100, abs=0.01)
    assert [share.start for share in bar.shares] == pytest.approx([0, 18.75, 31.25, 62.5, 93.75])


def test_what_a_loading_replica_will_take_is_promised_out_of_the_free_memory(
    machine: Node, served: ServedModel
) -> None:
    replica(served, machine, S.STARTING, memory_bytes=GIB, expected_bytes=3 * GIB)
    assert shares(machine) == {
        ("replica", "Fake"): GIB,
        ("other", "other programs"): 9 * GIB,
        ("promised", "Fake, loading"): 2 * GIB,
        ("free", "free"): 3 * GIB,
        ("reserve", "reserve"): GIB,
    }


@pytest.mark.parametrize(
    ("total", "free", "taken"),
    [(0, 0, 0), (GIB, 0, 2 * GIB), (GIB, None, 0), (GIB, 5 * GIB, 0), (GIB, 1, 10)],
)
def test_figures_that_contradict_each_other_make_no_bar_longer_than_itself(
    machine: Node, served: ServedModel, total: int, free: int | None, taken: int
) -> None:
    machine.memory_bytes, machine.memory_free_bytes = total, free
    replica(served, machine, memory_bytes=taken, expected_bytes=2**50)
    for bar in memory_map.bars_of(machine, Instance.objects.all(), GIB):
        assert all(0 <= share.start <= 100 and share.bytes > 0 for share in bar.shares)
        assert bar.free_bytes >= 0


def test_a_gpus_memory_is_told_by_process(machine: Node, served: ServedModel) -> None:
    replica(served, machine, pid=77, memory_bytes=GIB)
    gpu = {"index": 0, "name": "H200", "memory_bytes": 100, "free_bytes": 30, "by_pid": {"77": 60, "5": 10}}
    machine.gpus = [gpu, {"index": 1, "name": "H200", "memory_bytes": 100, "free_bytes": 100}]
    _, first, second = memory_map.bars_of(machine, Instance.objects.all(), GIB)
    assert first.label == "GPU 0: H200"
    assert [(share.kind, share.bytes) for share in first.shares] == [
        ("replica", 60),
        ("other", 10),
        ("free", 30),
    ]
    assert [(share.kind, share.bytes) for share in second.shares] == [("free", 100)]


# The page -----------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_sits_where(staff: Client, machine: Node, served: ServedModel) -> None:
    replica(served, machine, memory_bytes=3 * GIB, port=20_001)
    page = staff.get("/models/nodes/").content.decode()
    assert re.search(r'data-node="test-node" data-alive="yes"', page)
    for words in (
        "6.0 GiB free of 16.0 GiB",
        "3.0 GiB",
        "port 20001",
        "llama-server 6543",
        "just now",
        ">big<",
    ):
        assert words in page, words
    assert "One machine so far" in page
    assert "llamaproj node --name gpu2" in page
    assert ">Remove<" not in page
    assert "style=" not in page.split('id="nodes"')[1]


def test_several_machines_need_no_invitation(staff: Client, machine: Node) -> None:
    Node.objects.create(name="gpu2")
    page = staff.get("/models/nodes/").content.decode()
    assert "One machine so far" not in page
    assert "gpu2 has never been heard of: its worker hasn&#x27;t started yet." in page


@pytest.mark.parametrize(
    ("elsewhere", "words"),
    [
        (True, "test-node hasn't been heard of for 3 min; its replicas run elsewhere until it returns."),
        (False, "test-node hasn't been heard of for 3 min; its replicas are out of reach"),
    ],
)
def test_a_silent_machine_is_told_in_words(
    machine: Node, served: ServedModel, elsewhere: bool, words: str
) -> None:
    silent(machine)
    replica(served, machine, S.UNREACHABLE)
    if elsewhere:
        replica(served, Node.objects.create(name="other", last_seen=Now()))
    one = next(one for one in node_overview.nodes() if one.node == machine)
    assert one.trouble.startswith(words)
    assert (one.word, one.tone, one.is_alive) == ("silent", "bad", False)


def test_a_silent_machine_without_replicas_is_no_loss(machine: Node) -> None:
    silent(machine)
    (one,) = node_overview.nodes()
    assert one.trouble == "test-node hasn't been heard of for 3 min; nothing runs there."
    assert one.heard == "3 min ago"


def test_the_page_needs_a_bounded_number_of_queries(
    staff: Client, machine: Node, served: ServedModel, django_assert_max_num_queries
) -> None:
    for number in range(10):
        other = Node.objects.create(name=f"n{number}", last_seen=Now())
        for _ in range(4):
            replica(served, other)
    with django_assert_max_num_queries(12):
        staff.get("/models/nodes/")


def test_members_see_and_change_nothing(client: Client, machine: Node, member: User) -> None:
    client.force_login(member)
    assert client.get("/models/nodes/").status_code == HTTPStatus.FORBIDDEN
    assert client.get(f"/models/nodes/{machine.pk}/edit/").status_code == HTTPStatus.FORBIDDEN
    for verb in ("accept", "edit", "remove"):
        assert client.post(f"/models/nodes/{machine.pk}/{verb}/").status_code == HTTPStatus.FORBIDDEN
    assert "Nodes</a>" not in client.get("/models/").content.decode()
    assert Node.objects.get().accepts_replicas
    assert not AuditEntry.objects.exists()


def test_a_get_changes_nothing(staff: Client, machine: Node) -> None:
    for verb in ("accept", "remove"):
        assert staff.get(f"/models/nodes/{machine.pk}/{verb}/").status_code == HTTPStatus.METHOD_NOT_ALLOWED


def test_the_switch_answers_htmx_with_the_piece_and_a_form_with_the_page(
    staff: Client, machine: Node
) -> None:
    where = f"/models/nodes/{machine.pk}/accept/"
    piece = staff.post(where, {"accepts": "0"}, headers={"HX-Request": "true"})
    assert "HX-Request" in piece.headers["Vary"]
    assert piece.content.decode().startswith('<div id="nodes"')
    assert "takes nothing new" in piece.content.decode()
    assert not Node.objects.get().accepts_replicas
    assert staff.post(where, {"accepts": "1"}).headers["Location"] == "/models/nodes/"
    assert Node.objects.get().accepts_replicas


def test_a_limit_of_so_many_bytes_is_not_rounded_by_what_else_is_changed(
    staff: Client, machine: Node
) -> None:
    Node.objects.update(memory_limit_bytes=1_000_000_001)
    where = f"/models/nodes/{machine.pk}/edit/"
    shown = staff.get(where).context["form"].initial
    assert str(shown["memory_limit_gib"]) == "0.93"
    staff.post(where, {"labels": "gpu", "memory_limit_gib": "0.93", "accepts_replicas": "on"})
    call_command("nodes", "set", machine.name, labels="large")
    machine.refresh_from_db()
    assert (machine.labels, machine.memory_limit_bytes) == (["large"], 1_000_000_001)
    assert [set(one.detail) for one in AuditEntry.objects.all()] == [{"labels"}, {"labels"}]


def test_labels_and_limit_are_changed_and_audited(staff: Client, machine: Node) -> None:
    where = f"/models/nodes/{machine.pk}/edit/"
    form = staff.get(where).context["form"]
    assert form.initial == {"labels": "big", "memory_limit_gib": None, "accepts_replicas": True}
    staff.post(where, {"labels": " gpu, large ,gpu,", "memory_limit_gib": "7.5", "accepts_replicas": "on"})
    node = Node.objects.get()
    assert (node.labels, node.memory_limit_bytes, node.accepts_replicas) == (
        ["gpu", "large"],
        7.5 * GIB,
        True,
    )
    entry = AuditEntry.objects.get()
    assert (entry.verb, entry.detail) == (
        "node.change",
        {"labels": ["gpu", "large"], "memory_limit_bytes": 7.5 * GIB},
    )
    staff.post(where, {"labels": "gpu,large", "memory_limit_gib": "7.5", "accepts_replicas": "on"})
    assert AuditEntry.objects.count() == 1
    staff.post(where, {"labels": "", "memory_limit_gib": ""})
    node = Node.objects.get()
    assert (node.labels, node.memory_limit_bytes, node.accepts_replicas) == ([], None, False)


@pytest.mark.parametrize(
    "wrong",
    [{"labels": "x" * 61}, {"memory_limit_gib": "-1"}, {"memory_limit_gib": "much"}, {"labels": "x" * 2000}],
)
def test_what_can_not_be_is_refused_at_its_field(staff: Client, machine: Node, wrong: dict[str, str]) -> None:
    answer = staff.post(f"/models/nodes/{machine.pk}/edit/", wrong)
    assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert 'class="errors"' in answer.content.decode()
    assert Node.objects.get().labels == ["big"]


def test_the_action_checks_labels_itself(machine: Node, admin: User) -> None:
    with pytest.raises(ValidationError):
        node_actions.change(machine, by=admin, labels=[3])
    with pytest.raises(TypeError):
        node_actions.change(machine, by=admin, address="0.0.0.0")


# Removing -----------------------------------------------------------------------------------------------------------


def test_a_living_machine_is_not_removed(staff: Client, machine: Node) -> None:
    answer = staff.post(f"/models/nodes/{machine.pk}/remove/", headers={"HX-Request": "true"})
    assert answer.status_code == HTTPStatus.CONFLICT
    assert "test-node is alive; stop its worker first." in answer.content.decode()
    assert Node.objects.exists()


def test_a_silent_machine_is_forgotten_and_its_models_go_on_elsewhere(
    staff: Client, machine: Node, served: ServedModel
) -> None:
    silent(machine)
    replica(served, machine, S.UNREACHABLE)
    other = Node.objects.create(name="other", last_seen=Now())
    ModelFile.objects.update(content_id="abc")
    file = ModelFile.objects.create(
        node=other, path="/m/copy.gguf", size_bytes=4, modified_at="2026-01-01T00:00:00Z", content_id="abc"
    )
    assert "Remove test-node with its files and replicas" in staff.get("/models/nodes/").content.decode()
    answer = staff.post(f"/models/nodes/{machine.pk}/remove/", headers={"HX-Request": "true"})
    assert 'data-node="test-node"' not in answer.content.decode()
    served.refresh_from_db()
    assert served.file == file
    assert not Instance.objects.exists()
    assert AuditEntry.objects.get().verb == "node.remove"


@pytest.mark.parametrize("content_id", ["", "abc"])
def test_a_machine_that_alone_has_a_models_file_stays(
    machine: Node, served: ServedModel, admin: User, content_id: str
) -> None:
    silent(machine)
    ModelFile.objects.update(content_id=content_id)
    other = Node.objects.create(name="other")
    for number, fields in enumerate(({"missing": True}, {"error": "It is broken."}, {"content_id": "other"})):
        ModelFile.objects.create(
            **{"node": other, "path": f"/m/{number}.gguf", "size_bytes": 4, "content_id": content_id}
            | {"modified_at": "2026-01-01T00:00:00Z"}
            | fields
        )
    with pytest.raises(Conflict, match="Only test-node has the files of Fake; copy them"):
        node_actions.remove(machine, by=admin)
    assert Node.objects.filter(pk=machine.pk).exists()
    assert not AuditEntry.objects.exists()


# The socket ---------------------------------------------------------------------------------------------------------


async def opened(user: User) -> WebsocketCommunicator:
    socket = WebsocketCommunicator(NodesConsumer.as_asgi(), "/ws/models/nodes/")
    socket.scope["user"] = user
    accepted, _ = await socket.connect()
    assert accepted
    return socket


@pytest.mark.django_db(transaction=True)
async def test_the_page_follows_what_happens_and_what_does_not(
    admin: User, machine: Node, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models_admin.nodes.consumer._EVERY_S", 0.5)
    socket = await opened(admin)
    first = json.loads(await socket.receive_from())
    assert (first["target"], first["swap"]) == ("#nodes", "outerMorph")
    assert 'data-alive="yes"' in first["content"]
    await database_sync_to_async(replica)(served, machine)
    await database_sync_to_async(events.served_changed)(served.pk)
    assert "Replicas on test-node" not in first["content"]
    # What the clock sends in between still shows how it was.
    async with asyncio.timeout(20):
        while "Replicas on test-node" not in json.loads(await socket.receive_from())["content"]:
            pass
        # Nobody announces a silence.
        await database_sync_to_async(silent)(machine)
        while 'data-alive="no"' not in json.loads(await socket.receive_from())["content"]:
            pass
    await socket.disconnect()


@pytest.mark.django_db(transaction=True)
async def test_a_member_is_sent_away(member: User, machine: Node) -> None:
    socket = await opened(member)
    assert (await socket.receive_output()) == {"type": "websocket.close", "code": 4404}
    await socket.disconnect()


# The command line ---------------------------------------------------------------------------------------------------


def nodes(*arguments: str) -> str:
    said = io.StringIO()
    call_command("nodes", *arguments, stdout=said)
    return said.getvalue()


def test_the_command_line_lists_and_changes_machines(machine: Node, served: ServedModel) -> None:
    replica(served, machine)
    silent(Node.objects.create(name="gone"))
    listed = nodes("list")
    assert re.search(
        r"test-node +ready +just now +127\.0\.0\.1 +6\.0 GiB +16\.0 GiB +0 +1 +big +llama-server 6543", listed
    )
    assert "gone hasn't been heard of for 3 min; nothing runs there." in listed
    nodes("drain", "test-node")
    nodes("set", "test-node", "--memory-gib", "4")
    node = Node.objects.get(name="test-node")
    assert (node.accepts_replicas, node.memory_limit_bytes, node.labels) == (False, 4 * GIB, ["big"])
    nodes("accept", "test-node")
    nodes("set", "test-node", "--labels", "a, b", "--memory-gib", "")
    node.refresh_from_db()
    assert (node.accepts_replicas, node.memory_limit_bytes, node.labels) == (True, None, ["a", "b"])
    nodes("remove", "gone")
    assert Node.objects.get() == machine


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("drain", "nobody"), "There is no machine 'nobody'"),
        (("remove", "test-node"), "test-node is alive"),
        (("set", "test-node", "--memory-gib", "much"), "number"),
        (("set", "test-node", "--labels", "x" * 61), "at most 60 signs"),
    ],
)
def test_the_command_line_refuses_in_a_sentence(
    machine: Node, arguments: tuple[str, ...], words: str
) -> None:
    with pytest.raises(CommandError, match=words):
        nodes(*arguments)
    assert Node.objects.get().labels == ["big"]
