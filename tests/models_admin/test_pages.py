import json
import re
import time
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.test import Client
from django.utils import timezone

from accounts import version
from accounts.models import AuditEntry, Team, User
from models_admin import consumers, events, notes, tasks
from models_admin.consumers import ModelsConsumer
from models_admin.engine import launch_config
from models_admin.models import Instance, ModelFile, Node, PortalConfig, ServedModel
from models_admin.states import InstanceState as S

pytestmark = pytest.mark.django_db
# Numbers of their own: ids and tokens are random, and have any in them.
PID_OR_PORT = re.compile(r"(?<![\w-])(4321|20001)(?![\w-])")


@pytest.fixture(autouse=True)
def nobody_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "wake", lambda name: None)


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
        for secret in (ready.served.file.path, ">Stop<", ">Start<", "Scan", "model-log"):
            assert secret not in page, (path, secret)
        assert not PID_OR_PORT.search(page), path


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


def typed(form: Any) -> dict[str, Any]:
    """What a browser sends of a form nobody touched."""
    values = {bound.name: bound.value() for bound in form}
    for bound in form:
        if bound.widget_type == "nullbooleanselect" and bound.value() is not None:
            values[bound.name] = str(bound.value()).lower()
    return {name: value for name, value in values.items() if value not in (None, False, [], "unknown")}


def test_adding_a_model(staff: Client, served: ServedModel) -> None:
    path = f"/models/add/{served.file.pk}/"
    values = typed(staff.get(path).context["form"])
    answer = staff.post(
        path,
        values
        | {
            "slug": "second",
            "extra_flags": "--mlock --temp 0.5",
            "lora": "/a.gguf\n\n/b.gguf",
            "min_replicas": 1,
        },
    )
    assert answer.headers["Location"] == "/models/second/"
    added = ServedModel.objects.get(slug="second")
    assert added.extra_flags == ["--mlock", "--temp", "0.5"]
    assert added.lora == ["/a.gguf", "/b.gguf"]
    assert (added.enabled, added.desired_replicas) == (True, 1)
    for field, wrong in (
        ("extra_flags", "--tools all"),
        ("extra_flags", "'"),
        ("slots", "0"),
        ("slug", "add"),
        ("slug", "config"),
        ("slug", "second"),
        ("name", ""),
        ("ubatch_tokens", "4096"),
        ("max_replicas", "0"),
        ("lora", "adapter.gguf"),
        ("pooling", "mean"),
        ("pooling", "median"),
        ("binary", "llama-server"),
    ):
        refused = staff.post(path, values | {"slug": "third"} | {field: wrong})
        assert refused.status_code == HTTPStatus.UNPROCESSABLE_ENTITY, wrong
        assert list(refused.context["form"].errors) == [field], wrong
        assert f'id="id_{field}_error"' in refused.content.decode()
        assert f'<a href="#id_{field}">' in refused.content.decode()
    assert ServedModel.objects.count() == 2


def test_a_model_can_be_added_without_starting_it(staff: Client, served: ServedModel) -> None:
    path = f"/models/add/{served.file.pk}/"
    values = typed(staff.get(path).context["form"]) | {"slug": "second"}
    del values["start_now"]
    staff.post(path, values)
    assert not ServedModel.objects.get(slug="second").enabled


def test_changing_a_model(staff: Client, served: ServedModel) -> None:
    values = typed(staff.get("/models/fake-model/edit/").context["form"])
    answer = staff.post(
        "/models/fake-model/edit/", values | {"slots": "3", "slug": "other", "extra_flags": "--mlock"}
    )
    assert answer.headers["Location"] == "/models/fake-model/"
    served.refresh_from_db()
    assert (served.slug, served.slots, served.extra_flags) == ("fake-model", 3, ["--mlock"])
    assert AuditEntry.objects.get().detail == {"fields": ["extra_flags", "slots"]}


def test_a_field_left_empty_shows_what_holds_then(staff: Client, served: ServedModel) -> None:
    page = staff.get("/models/fake-model/edit/").content.decode()
    assert 'placeholder="2048, the portal&#x27;s default"' in page
    assert ">f16, the portal&#x27;s default</option>" in page
    assert ">off, the portal&#x27;s default</option>" in page
    PortalConfig(batch_tokens=1024, cache_type_k="q8_0").save()
    page = staff.get("/models/fake-model/edit/").content.decode()
    assert 'placeholder="1024, the portal&#x27;s default"' in page
    assert ">q8_0, the portal&#x27;s default</option>" in page


def test_a_models_page_shows_what_holds_in_the_end(staff: Client, served: ServedModel) -> None:
    ServedModel.objects.update(context_tokens=None, slots=None)
    PortalConfig(slots=6, threads=3, extra_flags=["--mlock"]).save()
    page = staff.get("/models/fake-model/").content.decode()
    assert "4,096 tokens for each of 6 slots" in page
    assert "<dt>Threads</dt><dd>3</dd>" in page
    assert "2,048 / 512 tokens" in page
    assert "<code>--mlock</code>" in page


def test_saving_unchanged_changes_nothing(staff: Client, served: ServedModel) -> None:
    everything = {"lora": ["/a b.gguf"], "extra_flags": ["--temp", "0.5"], "node_labels": ["gpu", "big"]}
    ServedModel.objects.update(**everything, vision=False, flash_attention="on", chat_template="{{ a }}")
    staff.post("/models/fake-model/edit/", typed(staff.get("/models/fake-model/edit/").context["form"]))
    served.refresh_from_db()
    assert {name: getattr(served, name) for name in everything} == everything
    assert (served.vision, served.flash_attention, served.chat_template) == (False, "on", "{{ a }}")
    assert not AuditEntry.objects.exists()


def test_a_change_says_what_it_replaces_and_asks_once(
    staff: Client, ready: Instance, served: ServedModel
) -> None:
    Instance.objects.update(launched=launch_config.of(served).snapshot())
    path = "/models/fake-model/edit/"
    values = typed(staff.get(path).context["form"])
    harmless = staff.post(path, values | {"drain_timeout_s": "9"})
    assert harmless.status_code == HTTPStatus.FOUND
    asked = staff.post(path, values | {"slots": "3"})
    assert asked.status_code == HTTPStatus.OK
    assert "1 running replica is replaced: Fake (1)." in asked.content.decode()
    assert ">Save and replace</button>" in asked.content.decode()
    served.refresh_from_db()
    assert served.slots == 2
    agreed = {"confirmed": asked.context["confirmed"]}
    # Another change than the one that was agreed to is asked again.
    assert staff.post(path, values | agreed | {"slots": "4"}).status_code == HTTPStatus.OK
    assert staff.post(path, values | agreed | {"slots": "3"}).headers["Location"] == "/models/fake-model/"
    served.refresh_from_db()
    assert served.slots == 3


def test_the_portals_configuration_is_changed_on_its_page(
    staff: Client, ready: Instance, served: ServedModel
) -> None:
    Instance.objects.update(launched=launch_config.of(served).snapshot())
    path = "/models/config/"
    assert "2048, unless said here" in staff.get(path).content.decode()
    values = typed(staff.get(path).context["form"])
    assert staff.post(path, values | {"idle_timeout_s": "60"}).headers["Location"] == path
    asked = staff.post(path, values | {"threads": "3"})
    assert "1 running replica is replaced: Fake (1)." in asked.content.decode()
    assert PortalConfig.current().threads is None
    staff.post(path, values | {"threads": "3", "confirmed": asked.context["confirmed"]})
    assert PortalConfig.current().threads == 3
    assert launch_config.of(served).threads == 3
    assert [entry.verb for entry in AuditEntry.objects.all()] == ["config.change", "config.change"]
    refused = staff.post(path, values | {"last_port": "19999"})
    assert refused.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert list(refused.context["form"].errors) == ["last_port"]


def test_members_do_not_see_the_configuration(client: Client, member: User) -> None:
    client.force_login(member)
    assert client.get("/models/config/").status_code == HTTPStatus.FORBIDDEN
    assert client.post("/models/config/", {"threads": "3"}).status_code == HTTPStatus.FORBIDDEN
    assert not PortalConfig.objects.exists()


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


def test_the_admin_sites_configuration_is_one_row(
    staff: Client, ready: Instance, served: ServedModel
) -> None:
    Instance.objects.update(launched=launch_config.of(served).snapshot())
    where = "/admin/models_admin/portalconfig/"
    change = staff.get(where).headers["Location"]
    assert staff.get(f"{where}add/").status_code == HTTPStatus.FORBIDDEN
    values = typed(staff.get(change).context["adminform"].form)
    answer = staff.post(change, values | {"threads": "5", "lora": "/a.gguf"}, follow=True)
    assert "1 running replica is replaced: Fake (1)." in answer.content.decode()
    assert (PortalConfig.current().threads, PortalConfig.current().lora) == (5, ["/a.gguf"])
    assert AuditEntry.objects.get().verb == "config.change"
    refused = staff.post(change, values | {"last_port": "19999"})
    assert list(refused.context["adminform"].form.errors) == ["last_port"]
    assert (
        staff.post(f"{change[: -len('change/')]}delete/", {"post": "yes"}).status_code == HTTPStatus.FORBIDDEN
    )


def test_what_administrators_say_of_a_machine(staff: Client, node: Node) -> None:
    where = f"/admin/models_admin/node/{node.pk}/change/"
    values = typed(staff.get(where).context["adminform"].form)
    staff.post(where, values | {"labels": "gpu, big", "memory_limit_bytes": "1024"})
    node.refresh_from_db()
    assert (node.labels, node.memory_limit_bytes) == (["gpu", "big"], 1024)
    assert AuditEntry.objects.get().detail == {"labels": ["gpu", "big"], "memory_limit_bytes": 1024}
    assert node.memory_bytes == 2**34


def test_a_refusals_page_leads_back_to_where_it_was_asked(staff: Client, served: ServedModel) -> None:
    ModelFile.objects.update(error="It is damaged.")
    where = f"/models/{served.slug}/start/"

    refused = staff.post(where, headers={"referer": f"http://testserver/models/{served.slug}/"})
    assert refused.status_code == HTTPStatus.CONFLICT
    assert f'href="http://testserver/models/{served.slug}/">Back</a>' in refused.content.decode()

    elsewhere = staff.post(where, headers={"referer": "http://elsewhere.example/models/"})
    assert "Back</a>" not in elsewhere.content.decode()


def test_a_silent_machine_is_forgotten_in_the_admin_site(staff: Client, ready: Instance, node: Node) -> None:
    where = f"/admin/models_admin/node/{node.pk}/delete/"
    Node.objects.update(last_seen=timezone.now())
    assert staff.post(where, {"post": "yes"}).status_code == HTTPStatus.FORBIDDEN
    Node.objects.update(last_seen=timezone.now() - timedelta(hours=1))
    assert "copy them to another machine" in staff.post(where, {"post": "yes"}, follow=True).content.decode()
    assert Node.objects.filter(pk=node.pk).exists()
    ServedModel.objects.all().delete()
    assert "Are you sure" in staff.get(where).content.decode()
    assert staff.post(where, {"post": "yes"}).status_code == HTTPStatus.FOUND
    assert not Node.objects.filter(pk=node.pk).exists()
    assert AuditEntry.objects.filter(verb="node.remove").exists()


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
    values = typed(staff.get(f"{where}{served.pk}/change/").context["adminform"].form)
    staff.post(f"{where}{served.pk}/change/", values | {"slots": "7", "extra_flags": "--mlock"})
    served.refresh_from_db()
    assert (served.slots, served.extra_flags) == (7, ["--mlock"])
    refused = staff.post(f"{where}{served.pk}/change/", values | {"slots": "7", "binary": "llama-server"})
    assert list(refused.context["adminform"].form.errors) == ["binary"]
    values |= {"slug": "added", "file": served.file.pk, "extra_flags": ""}
    staff.post(f"{where}add/", values)
    assert ServedModel.objects.get(slug="added").file == served.file
    verbs = [entry.verb for entry in AuditEntry.objects.order_by("at")]
    assert verbs == ["model.start", "model.stop", "model.change", "model.add"]
    staff.post(f"{where}{served.pk}/delete/", {"post": "yes"})
    assert not ServedModel.objects.filter(pk=served.pk).exists()


def test_who_may_use_a_model_is_said_to_everybody_by_the_admin_site_too(
    staff: Client,
    served: ServedModel,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Any,
) -> None:
    renewed: list[str] = []
    monkeypatch.setattr(version, "_renew", renewed.append)
    team, where = Team.objects.create(name="Research"), "/admin/models_admin/servedmodel/"
    values = typed(staff.get(f"{where}{served.pk}/change/").context["adminform"].form)
    for path, more in (
        (f"{served.pk}/change/", {"teams": [team.pk]}),
        ("add/", {"teams": [team.pk], "slug": "added", "file": served.file.pk}),
    ):
        renewed.clear()
        with django_capture_on_commit_callbacks(execute=True):
            staff.post(f"{where}{path}", values | more)
        assert version.RIGHTS in renewed
    assert {model.slug for model in team.models.all()} == {"fake-model", "added"}
    changed = AuditEntry.objects.get(verb="model.change")
    assert changed.detail == {"fields": ["teams"]}


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
            frame = json.loads(await self.socket.receive_from())
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
        began = time.monotonic()
        for _ in range(50):
            await database_sync_to_async(events.instance_changed)(ready.served.pk, ready.pk)
        await page.frames(1)
        count = 1
        while not await page.socket.receive_nothing(timeout=0.5):
            await page.frames(1)
            count += 1
        # One for each quarter of a second in which something was announced.
        assert count <= 2 + (time.monotonic() - began) / consumers._PAUSE_S
        assert count < 25


@pytest.mark.django_db(transaction=True)
async def test_a_models_own_page_follows_its_log(admin: User, ready: Instance) -> None:
    notes.tell_log(ready.pk, ["one <line>"])
    async with Page(admin, "?model=fake-model") as page:
        first = await page.frames(6)
        assert "one &lt;line&gt;" in first["#model-log"]
        notes.tell_log(ready.pk, ["one <line>", "another"])
        await database_sync_to_async(events.log_grown)(ready.served.pk, ready.pk)
        assert "another" in (await page.frames(1))["#model-log"]


@pytest.mark.django_db(transaction=True)
async def test_a_member_gets_cards_without_machines_and_no_files_or_logs(
    member: User, ready: Instance
) -> None:
    async with Page(member) as page:
        first = await page.frames(1)
        assert not PID_OR_PORT.search(first["#models"])
        await database_sync_to_async(events.files_changed)()
        assert await page.socket.receive_nothing(timeout=0.5)
    async with Page(member, "?model=fake-model") as page:
        assert set(await page.frames(2)) == {"#model-head", "#model-replicas"}


@pytest.mark.django_db(transaction=True)
async def test_who_may_not_see_it_is_sent_away(member: User, ready: Instance) -> None:
    team = await Team.objects.acreate(name="Team")
    await database_sync_to_async(ready.served.teams.add)(team)
    async with Page(member, "?model=fake-model") as page:
        assert (await page.socket.receive_output())["type"] == "websocket.close"
    async with Page(member) as page:
        assert "fake-model" not in (await page.frames(1))["#models"]
        await User.objects.filter(pk=member.pk).aupdate(is_active=False)
        await database_sync_to_async(events.served_changed)(ready.served.pk)
        assert (await page.socket.receive_output())["type"] == "websocket.close"


async def test_nobody_is_refused() -> None:
    from django.contrib.auth.models import AnonymousUser

    async with Page(AnonymousUser()) as page:  # type: ignore[arg-type]
        assert not page.accepted
        assert page.code == 4401
