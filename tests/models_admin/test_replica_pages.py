"""What a model's own page shows of what runs: its trouble, its slots, its log."""

import uuid
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.test import Client
from django.utils import timezone

from accounts.models import AuditEntry, User
from models_admin import events, notes, tasks
from models_admin.engine import instance_log
from models_admin.engine.diagnosis import Cause
from models_admin.engine.slots import of as listed
from models_admin.models import Instance, Node, ServedModel
from models_admin.states import InstanceState as S
from tests.models_admin.test_pages import Page

pytestmark = pytest.mark.django_db
COULD_NOT_BIND = (
    "0.00.008.542 E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: <8080>"
)
BUSY = {
    "id": 1,
    "n_ctx": 2048,
    "is_processing": True,
    "n_prompt_tokens": 1044,
    "next_token": [{"n_decoded": 10}],
}
IDLE = {"id": 0, "n_ctx": 2048, "is_processing": False}


@pytest.fixture(autouse=True)
def nobody_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "wake", lambda name: None)


@pytest.fixture
def replica(served: ServedModel, node: Node) -> Instance:
    ServedModel.objects.update(desired_replicas=1, enabled=True)
    return Instance.objects.create(
        served=served, node=node, state=S.READY, started_at=timezone.now(), port=20_001, pid=77
    )


@pytest.fixture
def failed(replica: Instance) -> Instance:
    Instance.objects.update(state=S.FAILED, cause=Cause.PORT_IN_USE, reason="Given up.", port=None)
    notes.tell_log(replica.pk, [COULD_NOT_BIND])
    return replica


def test_a_model_that_runs_is_not_removed_and_its_page_says_why(replica: Instance, admin_client: Client):
    page = admin_client.post("/models/fake-model/remove/", follow=True)

    assert page.redirect_chain[-1][0] == "/models/fake-model/"
    assert "stop it first." in page.content.decode()
    assert ServedModel.objects.filter(pk=replica.served_id).exists()


def test_many_replicas_are_dots_on_the_card(replica: Instance, node: Node, admin_client: Client):
    for port in range(20_002, 20_006):
        Instance.objects.create(served=replica.served, node=node, state=S.READY, port=port)

    card = admin_client.get("/models/").content.decode()

    assert 'aria-label="5 of 5 replicas are ready"' in card
    assert "model-replica" not in card


def test_a_replica_that_failed_does_not_count_as_one_that_answers(failed: Instance, admin_client: Client):
    card = admin_client.get("/models/").content.decode()

    assert '0<span class="unit">of 1 ready</span>' in card


def test_the_page_says_what_went_wrong_and_offers_a_way_out(staff: Client, failed: Instance) -> None:
    page = staff.get("/models/fake-model/").content.decode()
    assert 'data-cause="port_in_use"' in page
    assert "another program has the port" in page
    assert "&lt;8080&gt;" in page
    assert 'action="/models/fake-model/remedy/again/"' in page


def test_one_click_applies_a_remedy(staff: Client, failed: Instance) -> None:
    answer = staff.post("/models/fake-model/remedy/again/", headers={"HX-Request": "true"})
    assert answer.status_code == HTTPStatus.OK
    assert "HX-Request" in answer.headers["Vary"]
    assert answer.content.decode().strip().startswith('<div id="model-diagnosis">')
    failed.refresh_from_db()
    assert (failed.state, failed.crashes) == (S.PENDING, 0)
    assert AuditEntry.objects.filter(verb="model.remedy", detail={"remedy": "again"}).count() == 1


def test_a_form_goes_back_to_the_page(staff: Client, failed: Instance) -> None:
    answer = staff.post("/models/fake-model/remedy/again/")
    assert answer.headers["Location"] == "/models/fake-model/"


def test_what_is_not_offered_is_refused_in_a_sentence(staff: Client, replica: Instance) -> None:
    answer = staff.post("/models/fake-model/remedy/again/", headers={"HX-Request": "true"})
    assert answer.status_code == HTTPStatus.CONFLICT
    assert "offered any more" in answer.content.decode()


def test_members_see_and_do_none_of_it(client: Client, failed: Instance) -> None:
    notes.tell_slots(failed.pk, listed([IDLE]))
    client.force_login(User.objects.create_user("member"))
    page = client.get("/models/fake-model/").content.decode()
    for secret in ("data-cause", "couldn", "model-slots", "data-log"):
        assert secret not in page
    assert client.post("/models/fake-model/remedy/again/").status_code == HTTPStatus.FORBIDDEN
    assert client.get(f"/models/fake-model/log/{failed.pk}/").status_code == HTTPStatus.FORBIDDEN
    failed.refresh_from_db()
    assert failed.state == S.FAILED


def test_a_get_applies_nothing(staff: Client, failed: Instance) -> None:
    assert staff.get("/models/fake-model/remedy/again/").status_code == HTTPStatus.METHOD_NOT_ALLOWED


def test_slots_show_what_they_do(staff: Client, replica: Instance) -> None:
    assert "slots-title" not in staff.get("/models/fake-model/").content.decode()
    notes.tell_slots(replica.pk, listed([BUSY, IDLE, {"id": 2, "n_ctx": 2048, "is_processing": True}]))
    page = staff.get("/models/fake-model/").content.decode()
    first, second, third = page.split('<li class="slot"')[1:]
    assert ">idle<" in first
    assert ">writing<" in second
    assert "1,044 of 2,048 tokens" in second
    assert "10 written" in second
    assert ">reading<" in third


def test_what_a_server_lists_strangely_is_still_a_slot() -> None:
    (slot,) = listed([{"id": "x", "n_ctx": float("nan"), "is_processing": 1, "next_token": []}])
    assert (slot.id, slot.context_tokens, slot.word) == (0, 0, "idle")


def test_the_same_slots_are_no_news(replica: Instance) -> None:
    assert notes.tell_slots(replica.pk, listed([BUSY]))
    assert not notes.tell_slots(replica.pk, listed([BUSY]))
    assert notes.tell_slots(replica.pk, listed([IDLE]))


def test_a_replica_and_a_number_of_lines_can_be_chosen(staff: Client, replica: Instance, node: Node) -> None:
    older = Instance.objects.create(
        served=replica.served, node=node, state=S.STOPPED, started_at=timezone.now() - timedelta(hours=1)
    )
    notes.tell_log(replica.pk, [f"new {number}." for number in range(300)])
    notes.tell_log(older.pk, ["old 1.", "0.00.000.001 E old 2."])
    page = staff.get("/models/fake-model/").content.decode()
    assert "new 100." in page
    assert "new 99." not in page
    page = staff.get("/models/fake-model/?lines=50").content.decode()
    assert "new 250." in page
    assert "new 249." not in page
    page = staff.get(f"/models/fake-model/?replica={older.pk}&lines=nonsense").content.decode()
    assert 'data-level="error">0.00.000.001 E old 2.' in page
    assert "new " not in page.split('id="model-log"')[1].split("</pre>")[0]
    assert f"replica={older.pk}&amp;lines=200" in page


def test_the_whole_log_is_downloaded_where_it_is(staff: Client, replica: Instance) -> None:
    with instance_log.opened(str(replica.pk), headline="llama-server") as file:
        file.write(b"all of it\n")
    answer: Any = staff.get(f"/models/fake-model/log/{replica.pk}/")
    assert b"".join(answer.streaming_content).endswith(b"all of it\n")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "attachment" in answer.headers["Content-Disposition"]
    instance_log.remove(str(replica.pk))


def test_elsewhere_the_last_lines_are_downloaded(staff: Client, replica: Instance) -> None:
    notes.tell_log(replica.pk, ["the end"])
    said = staff.get(f"/models/fake-model/log/{replica.pk}/").content.decode()
    assert said.startswith("--- test-node has the whole log")
    assert said.endswith("the end\n")


def test_only_the_models_own_replicas_logs_are_there(staff: Client, replica: Instance) -> None:
    assert staff.get(f"/models/fake-model/log/{uuid.uuid4()}/").status_code == HTTPStatus.NOT_FOUND
    other = ServedModel.objects.create(slug="other", name="Other", file=replica.served.file)
    assert staff.get(f"/models/{other.slug}/log/{replica.pk}/").status_code == HTTPStatus.NOT_FOUND


@pytest.mark.django_db(transaction=True)
async def test_slots_trouble_and_the_chosen_log_follow_what_changes(admin: User, replica: Instance) -> None:
    other = await ServedModel.objects.acreate(slug="other", name="Other", file=replica.served.file)
    notes.tell_log(replica.pk, [f"line {number}." for number in range(100)])
    async with Page(admin, f"?model=fake-model&replica={replica.pk}&lines=50") as page:
        first = await page.frames(6)
        assert set(first) == {
            "#model-head", "#model-replicas", "#model-diagnosis", "#model-slots", "#model-log", "#model-log-choice",
        }  # fmt: skip
        assert "line 50." in first["#model-log"]
        assert "line 49." not in first["#model-log"]
        assert 'value="50" selected' in first["#model-log-choice"]
        notes.tell_slots(replica.pk, listed([BUSY]))
        await database_sync_to_async(events.slots_changed)(replica.served_id, replica.pk)
        assert "10 written" in (await page.frames(1))["#model-slots"]
        await database_sync_to_async(events.slots_changed)(other.pk, uuid.uuid4())
        await database_sync_to_async(events.log_grown)(other.pk, uuid.uuid4())
        assert await page.socket.receive_nothing(timeout=0.5)
        await database_sync_to_async(replica.move_to)(S.CRASHED, "It ended.", cause=Cause.BAD_FILE)
        assert 'data-cause="bad_file"' in (await page.frames(6))["#model-diagnosis"]
        notes.tell_log(replica.pk, ["llama_model_load: invalid magic characters: 'not '"])
        await database_sync_to_async(events.log_grown)(replica.served_id, replica.pk)
        assert "invalid magic" in (await page.frames(2))["#model-diagnosis"]
