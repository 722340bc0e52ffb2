import asyncio
import json
from http import HTTPStatus
from typing import Any

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.test import Client
from django.utils import timezone

from accounts.models import AuditEntry, Team, User
from models_admin import events, notes, tasks
from models_admin.consumers import ModelsConsumer
from models_admin.models import Instance, ModelFile, Node, ServedModel
from models_admin.states import InstanceState as S

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nobody_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "wake", lambda name: None)


@pytest.fixture
def admin() -> User:
    return User.objects.create_superuser("boss")


@pytest.fixture
def member() -> User:
    return User.objects.create_user("member")


@pytest.fixture
def staff(client: Client, admin: User) -> Client:
    client.force_login(admin)
    return client


@pytest.fixture
def ready(served: ServedModel, node: Node) -> Instance:
    ServedModel.objects.update(desired_replicas=1)
    fields = {
        "port": 20_001,
        "pid": 4321,
        "pid_created": 1.0,
        "memory_bytes": 2**30,
        "started_at": timezone.now(),
    }
    return Instance.objects.create(served=served, node=node, state=S.READY, reason="Ready.", **fields)


def test_the_list_shows_each_model_with_its_state(staff: Client, ready: Instance) -> None:
    notes.tell_written(ready.pk, 100, at=10.0)
    notes.tell_written(ready.pk, 150, at=12.0)
    page = staff.get("/models/").content.decode()
    assert 'data-model="fake-model" data-state="ready"' in page
    assert "25<span" in page
    assert "1.0 GiB" in page
    assert "pid 4321" in page
    assert ">Stop</button>" in page
    assert "Scan</button>" in page


def test_members_see_no_machines_files_or_buttons(client: Client, ready: Instance, member: User) -> None:
    client.force_login(member)
    for path in ("/models/", "/models/fake-model/"):
        page = client.get(path).content.decode()
        assert 'data-model="fake-model"' in page
        for secret in ("4321", "20001", ready.served.file.path, ">Stop<", ">Start<", "Scan", "model-log"):
            assert secret not in page, (path, secret)


def test_members_learn_that_it_failed_but_not_its_log(client: Client, ready: Instance, member: User) -> None:
    Instance.objects.update(state=S.FAILED, reason="Given up. /srv/secret/model.gguf")
    ready.changes.create(old=S.CRASHED, new=S.FAILED, reason="Given up. /srv/secret/model.gguf")
    client.force_login(member)
    for path in ("/models/", "/models/fake-model/"):
        page = client.get(path).content.decode()
        assert "could not be started" in page
        assert "secret" not in page


def test_a_teams_model_is_for_its_members(client: Client, served: ServedModel, member: User) -> None:
    team = Team.objects.create(name="Team")
    served.teams.add(team)
    client.force_login(member)
    assert "fake-model" not in client.get("/models/").content.decode()
    assert client.get("/models/fake-model/").status_code == HTTPStatus.NOT_FOUND
    team.members.add(member)
    assert client.get("/models/fake-model/").status_code == HTTPStatus.OK


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "remove"])
def test_members_change_nothing(client: Client, served: ServedModel, member: User, verb: str) -> None:
    client.force_login(member)
    assert client.post(f"/models/fake-model/{verb}/").status_code == HTTPStatus.FORBIDDEN
    assert client.post("/models/scan/").status_code == HTTPStatus.FORBIDDEN
    assert client.get("/models/fake-model/edit/").status_code == HTTPStatus.FORBIDDEN
    assert client.get(f"/models/add/{served.file.pk}/").status_code == HTTPStatus.FORBIDDEN
    assert not AuditEntry.objects.exists()


def test_a_get_changes_nothing(staff: Client, served: ServedModel) -> None:
    assert staff.get("/models/fake-model/start/").status_code == HTTPStatus.METHOD_NOT_ALLOWED


def test_start_answers_htmx_with_the_card_and_a_form_with_the_page(
    staff: Client, served: ServedModel
) -> None:
    card = staff.post("/models/fake-model/start/", headers={"HX-Request": "true"})
    assert "HX-Request" in card.headers["Vary"]
    assert card.content.decode().startswith(f'<article class="card model" id="model-{served.pk}"')
    assert 'data-state="pending"' in card.content.decode()
    served.refresh_from_db()
    assert served.desired_replicas == 1
    assert staff.post("/models/fake-model/stop/").headers["Location"] == "/models/"


def test_a_models_own_page_answers_with_its_head(staff: Client, served: ServedModel) -> None:
    headers = {"HX-Request": "true", "HX-Target": "header#model-head"}
    assert 'id="model-head"' in staff.post("/models/fake-model/start/", headers=headers).content.decode()


def test_a_refusal_is_a_sentence(staff: Client, served: ServedModel) -> None:
    ModelFile.objects.update(error="It is broken.")
    answer = staff.post("/models/fake-model/start/", headers={"HX-Request": "true"})
    assert answer.status_code == HTTPStatus.CONFLICT
    assert "It is broken." in answer.content.decode()


def test_a_files_error_is_shown_and_a_good_one_can_be_added(staff: Client, served: ServedModel) -> None:
    broken = {"size_bytes": 1, "modified_at": timezone.now(), "error": "It is <broken>."}
    ModelFile.objects.create(node=served.file.node, path="/m/<b>.gguf", **broken)
    page = staff.get("/models/").content.decode()
    assert "It is &lt;broken&gt;." in page
    assert f'href="/models/add/{served.file.pk}/"' in page


def test_adding_a_model(staff: Client, served: ServedModel) -> None:
    path = f"/models/add/{served.file.pk}/"
    form = {name: field.initial for name, field in staff.get(path).context["form"].fields.items()}
    values = {name: value for name, value in form.items() if value is not None} | staff.get(path).context[
        "form"
    ].initial
    answer = staff.post(path, values | {"slug": "second", "flags": "--mlock --temp 0.5"})
    assert answer.headers["Location"] == "/models/second/"
    added = ServedModel.objects.get(slug="second")
    assert added.extra_flags == ["--mlock", "--temp", "0.5"]
    assert added.desired_replicas == 1
    for wrong in (
        {"flags": "--tools all"},
        {"flags": "'"},
        {"slots": "0"},
        {"slug": "add"},
        {"slug": "second"},
        {"name": ""},
    ):
        refused = staff.post(path, values | {"slug": "third"} | wrong)
        assert refused.status_code == HTTPStatus.UNPROCESSABLE_ENTITY, wrong
        assert 'class="errors"' in refused.content.decode()
    assert ServedModel.objects.count() == 2


def test_changing_a_model(staff: Client, served: ServedModel) -> None:
    form = staff.get("/models/fake-model/edit/").context["form"]
    values = {name: value for name, value in form.initial.items() if value not in (None, [])}
    answer = staff.post(
        "/models/fake-model/edit/", values | {"slots": "3", "slug": "other", "flags": "--mlock"}
    )
    assert answer.headers["Location"] == "/models/fake-model/"
    served.refresh_from_db()
    assert (served.slug, served.slots, served.extra_flags) == ("fake-model", 3, ["--mlock"])
    assert AuditEntry.objects.get().detail == {"fields": ["extra_flags", "slots"]}


def test_pages_need_a_bounded_number_of_queries(
    staff: Client, ready: Instance, node: Node, django_assert_max_num_queries: Any
) -> None:
    for number in range(20):
        served = ServedModel.objects.create(slug=f"m{number}", name=f"M{number}", file=ready.served.file)
        for _ in range(3):
            Instance.objects.create(served=served, node=node)
    with django_assert_max_num_queries(20):
        staff.get("/models/")
    with django_assert_max_num_queries(20):
        staff.get("/models/m1/")


@pytest.mark.parametrize("page", ["", "1/change/", "add/"])
def test_the_admin_site_shows_models(staff: Client, ready: Instance, page: str) -> None:
    page = page.replace("1", str(ready.served.pk))
    assert staff.get(f"/admin/models_admin/servedmodel/{page}").status_code == HTTPStatus.OK


@pytest.mark.parametrize("kind", ["node", "modelfile", "instance"])
def test_the_admin_site_shows_what_the_portal_writes_itself(
    staff: Client, ready: Instance, kind: str
) -> None:
    assert staff.get(f"/admin/models_admin/{kind}/").status_code == HTTPStatus.OK
    assert staff.get(f"/admin/models_admin/{kind}/add/").status_code == HTTPStatus.FORBIDDEN
    assert staff.get(f"/admin/models_admin/instance/{ready.pk}/change/").status_code == HTTPStatus.OK


def test_the_admin_sites_actions_are_the_same(staff: Client, served: ServedModel) -> None:
    where = "/admin/models_admin/servedmodel/"
    for action, replicas in (("start_models", 1), ("stop_models", 0)):
        staff.post(where, {"action": action, "_selected_action": [served.pk]})
        served.refresh_from_db()
        assert served.desired_replicas == replicas
    assert [entry.verb for entry in AuditEntry.objects.order_by("at")] == ["model.start", "model.stop"]
    form = staff.get(f"{where}{served.pk}/change/").context["adminform"].form
    values = {name: value for name, value in form.initial.items() if value not in (None, [])}
    staff.post(f"{where}{served.pk}/change/", values | {"slots": "7", "flags": "--mlock"})
    served.refresh_from_db()
    assert (served.slots, served.extra_flags) == (7, ["--mlock"])
    values |= {"slug": "added", "file": served.file.pk, "flags": ""}
    staff.post(f"{where}add/", values)
    assert ServedModel.objects.get(slug="added").file == served.file
    staff.post(f"{where}{served.pk}/delete/", {"post": "yes"})
    assert not ServedModel.objects.filter(pk=served.pk).exists()


# The socket ---------------------------------------------------------------------------------------------------------


class Page:
    """An open page's socket."""

    def __init__(self, user: User, query: str = "") -> None:
        self.socket = WebsocketCommunicator(ModelsConsumer.as_asgi(), f"/ws/models/{query}")
        self.socket.scope["user"] = user

    async def __aenter__(self) -> "Page":
        self.accepted, self.code = await self.socket.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.disconnect()

    async def frames(self, count: int) -> dict[str, str]:
        """The next frames' contents by their targets."""
        got = {}
        for _ in range(count):
            frame = json.loads(await self.socket.receive_from(timeout=5))
            assert set(frame) == {"type", "content", "target", "swap", "timestamp", "requestId"}
            got[frame["target"]] = frame["content"]
        return got


@pytest.mark.django_db(transaction=True)
async def test_the_list_follows_what_changes(admin: User, ready: Instance) -> None:
    async with Page(admin) as page:
        first = await page.frames(2)
        assert 'data-state="ready"' in first["#models"]
        assert ready.served.file.path in first["#model-files"]
        await database_sync_to_async(ready.move_to)(S.DRAINING, "Stopping.")
        changed = await page.frames(1)
        assert 'data-state="draining"' in changed[f"#model-{ready.served.pk}"]
        await database_sync_to_async(events.files_changed)()
        assert list(await page.frames(1)) == ["#model-files"]


@pytest.mark.django_db(transaction=True)
async def test_many_changes_at_once_are_few_frames(admin: User, ready: Instance) -> None:
    async with Page(admin) as page:
        await page.frames(2)
        for _ in range(50):
            await database_sync_to_async(events.instance_changed)(ready.served.pk, ready.pk)
        await asyncio.sleep(0.6)
        count = 0
        while not await page.socket.receive_nothing(timeout=0.3):
            await page.frames(1)
            count += 1
        assert 1 <= count <= 8


@pytest.mark.django_db(transaction=True)
async def test_a_models_own_page_follows_its_log(admin: User, ready: Instance) -> None:
    notes.tell_log(ready.pk, ["one <line>"])
    async with Page(admin, "?model=fake-model") as page:
        first = await page.frames(3)
        assert "one &lt;line&gt;" in first["#model-log"]
        assert set(first) == {"#model-head", "#model-replicas", "#model-log"}
        notes.tell_log(ready.pk, ["one <line>", "another"])
        await database_sync_to_async(events.log_grown)(ready.served.pk, ready.pk)
        assert "another" in (await page.frames(1))["#model-log"]


@pytest.mark.django_db(transaction=True)
async def test_a_member_gets_cards_without_machines_and_no_files_or_logs(
    member: User, ready: Instance
) -> None:
    async with Page(member) as page:
        first = await page.frames(1)
        assert "4321" not in first["#models"]
        await database_sync_to_async(events.files_changed)()
        assert await page.socket.receive_nothing(timeout=0.5)
    async with Page(member, "?model=fake-model") as page:
        assert set(await page.frames(2)) == {"#model-head", "#model-replicas"}


@pytest.mark.django_db(transaction=True)
async def test_who_may_not_see_it_is_sent_away(member: User, ready: Instance) -> None:
    team = await Team.objects.acreate(name="Team")
    await database_sync_to_async(ready.served.teams.add)(team)
    async with Page(member, "?model=fake-model") as page:
        assert (await page.socket.receive_output(timeout=5))["type"] == "websocket.close"
    async with Page(member) as page:
        assert "fake-model" not in (await page.frames(1))["#models"]
        await User.objects.filter(pk=member.pk).aupdate(is_active=False)
        await database_sync_to_async(events.served_changed)(ready.served.pk)
        assert (await page.socket.receive_output(timeout=5))["type"] == "websocket.close"


async def test_nobody_is_refused() -> None:
    from django.contrib.auth.models import AnonymousUser

    async with Page(AnonymousUser()) as page:  # type: ignore[arg-type]
        assert not page.accepted
        assert page.code == 4401
