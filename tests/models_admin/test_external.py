"""External servers: asked, watched, served from, by people through pages and from the command line."""

import io
from collections.abc import Callable, Iterator
from datetime import timedelta
from http import HTTPStatus

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from accounts.models import AuditEntry, Team, User
from llamaproj.celery import app
from llamaproj.errors import Conflict, InvalidInput
from models_admin import access, actions, overview, tasks
from models_admin.external import (
    actions as external_actions,
)
from models_admin.external import (
    address as external_address,
)
from models_admin.external import (
    external,
)
from models_admin.external import (
    probe as external_probe,
)
from models_admin.external import (
    tasks as external_tasks,
)
from models_admin.models import ExternalServer, Instance, ModelFile, Node, ServedModel
from models_admin.states import InstanceState as S
from tests.fake_openai import FakeOpenAI, in_thread
from tests.portal import free_port

pytestmark = pytest.mark.django_db

KEY = "sk-their-secret"


@pytest.fixture(autouse=True)
def nobody_woken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The servers that were to be asked soon; nothing is sent to a worker."""
    asked: list[int] = []
    monkeypatch.setattr(tasks, "wake", lambda name: None)
    monkeypatch.setattr(external_tasks, "check_soon", asked.append)
    return asked


@pytest.fixture
def running() -> Iterator[Callable[..., FakeOpenAI]]:
    """Start fake servers; they run in a thread of their own."""
    with in_thread() as start:
        yield lambda *models, **how: start(FakeOpenAI(models=list(models), **how))


def known(fake: FakeOpenAI, name: str = "box") -> ExternalServer:
    server = external_actions.add(by=None, name=name, base_url=fake.base_url, api_key=fake.key)
    external.check(server)
    server.refresh_from_db()
    return server


def served_from(fake: FakeOpenAI, model: str = "llama3") -> ServedModel:
    return external_actions.serve(known(fake), model, by=None)


def only(served: ServedModel) -> Instance:
    return served.instances.get()


# Addresses and keys


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (" http://Host:11434/v1/ ", "http://host:11434/v1"),
        ("http://host:12434/engines/v1", "http://host:12434/engines/v1"),
        ("https://portal.example.org/v1/chat/completions", "https://portal.example.org/v1"),
        ("http://host:8000/v1/models", "http://host:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
    ],
)
def test_an_address_is_cleaned(typed: str, kept: str) -> None:
    assert external_address.cleaned(typed) == kept


@pytest.mark.parametrize(
    "typed",
    [
        "", "host:8000", "ftp://host/v1", "file:///etc/passwd", "http://", "http://me:secret@host/v1", "http://me@host",
        "http://host/v1?x=1", "http://host/v1#x", "http://ho st/v1", "http://host:0/v1", "http://host:99999/v1",
        "http://[::1/v1", "http://host/\r\nx", "http://host\\@other/v1", "http://169.254.169.254/latest", "http://[fe80::1]/v1",
        "http://[::ffff:169.254.169.254]/v1", "http://0.0.0.0/v1", "http://host/" + "x" * 500,
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_in_words(typed: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        external_address.cleaned(typed)
    assert refusal.value.param == "base_url"
    assert not ExternalServer.objects.exists()


@pytest.mark.parametrize("key", ["sk x", "sk\r\nhost: evil", "schlüssel", "x" * 501])
def test_a_key_that_fits_no_header_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput, match="key"):
        external_actions.add(by=None, name="box", base_url="http://host/v1", api_key=key)


def test_a_key_is_kept_encrypted_and_stays_out_of_the_trail(admin: User) -> None:
    server = external_actions.add(by=admin, name="box", base_url="http://host/v1", api_key=KEY)
    server.refresh_from_db()
    assert KEY.encode() not in bytes(server.api_key_encrypted)
    assert server.api_key == KEY
    assert KEY not in str(AuditEntry.objects.values_list("verb", "target", "detail"))


def test_a_key_is_not_sent_to_another_host(admin: User) -> None:
    server = external_actions.add(by=None, name="box", base_url="http://host/v1", api_key=KEY)
    with pytest.raises(InvalidInput, match="another server"):
        external_actions.change(server, by=admin, name="box", base_url="http://evil/v1")
    external_actions.change(server, by=admin, name="box", base_url="http://host/other/v1")
    external_actions.change(server, by=admin, name="box", base_url="http://evil/v1", api_key="")
    server.refresh_from_db()
    assert (server.base_url, server.api_key) == ("http://evil/v1", "")


def test_one_address_and_one_name_are_one_server() -> None:
    external_actions.add(by=None, name="box", base_url="http://host:1/v1")
    with pytest.raises(Conflict, match="box"):
        external_actions.add(by=None, name="box", base_url="http://host:2/v1")
    for same in ("http://HOST:1/v1/", "http://host:1"):
        with pytest.raises(Conflict, match="box's already"):
            external_actions.add(by=None, name="other", base_url=same)
    assert ExternalServer.objects.count() == 1


# Asking


def test_a_server_is_asked_for_its_models(running) -> None:
    server = known(running("b", "a", "a", {"id": 3}, "", "x" * 300, None, key=KEY))
    assert (server.healthy, server.problem, server.models_offered) == (True, "", ["b", "a"])
    assert server.checked_at is not None


@pytest.mark.parametrize("root", ["/v1", "/engines/v1", ""])
def test_what_was_left_off_the_address_is_found(running, root: str) -> None:
    fake = running("llama3", root=root)
    server = external_actions.add(by=None, name="box", base_url=fake.origin)
    assert external.check(server).healthy
    server.refresh_from_db()
    assert server.base_url == fake.origin + root
    assert server.url("/v1/chat/completions") == f"{fake.origin}{root}/chat/completions"


@pytest.mark.parametrize(
    ("conduct", "problem"),
    [
        ("401", "wants a key"),
        ("403", "refuses this key"),
        ("404", "404"),
        ("429", "too many requests"),
        ("500", "error (500)"),
        ("503", "isn't ready"),
        ("418", "418"),
        ("redirect", "redirects"),
        ("garbage", "not with a list"),
        ("html", "not with a list"),
        ("endless", "absurdly long"),
        ("bomb", "compresses"),
        ("slow", "doesn't answer"),
    ],
)
def test_a_problem_is_told_in_words(running, conduct: str, problem: str, monkeypatch) -> None:
    if conduct == "slow":
        monkeypatch.setattr(external_probe, "_STEP_S", 0.5)
    fake = running("llama3", conduct=conduct)
    server = known(fake)
    assert server.healthy is False
    assert problem in server.problem
    assert server.models_offered == []
    assert fake.elsewhere == 0


def test_a_drop_by_drop_answer_ends_at_the_deadline(running, monkeypatch) -> None:
    monkeypatch.setattr(external_probe, "_PATIENCE_S", 0.2)
    assert "within" in known(running("llama3", conduct="slow")).problem


def test_nothing_at_the_address_is_a_sentence() -> None:
    server = external_actions.add(by=None, name="box", base_url=f"http://127.0.0.1:{free_port()}/v1")
    assert external.check(server).problem == "Nothing answers at this address."


def test_a_wrong_key_is_told_without_repeating_it(running) -> None:
    fake = running("llama3", key="sk-right")
    server = external_actions.add(by=None, name="box", base_url=fake.base_url, api_key=KEY)
    problem = external.check(server).problem
    assert "another one" in problem
    assert KEY not in problem


def test_a_key_that_cannot_be_read_any_more_says_so(running, settings) -> None:
    server = known(running("llama3", key=KEY))
    settings.SECRET_KEY = "another-key-another-key-another-key-another-key-another-key"
    assert "SECRET_KEY has changed" in external.check(server).problem


def test_a_check_of_an_older_address_changes_nothing(running) -> None:
    fake = running("llama3")
    old = external_actions.add(by=None, name="box", base_url=fake.base_url)
    external_actions.change(old, by=None, name="box", base_url="http://127.0.0.1:9/v1")
    assert external.check(old).healthy
    assert ExternalServer.objects.get().healthy is None


def test_a_failing_server_is_asked_less_and_less_often(running) -> None:
    cache.clear()
    fake = running("llama3", conduct="500")
    server = known(fake)
    pauses = []
    for _ in range(4):
        external.check(server)
        server.refresh_from_db()
        seconds = next(
            passed
            for passed in range(1000)
            if external.is_due(_as_of(server, timezone.now() - timedelta(seconds=passed)))
        )
        pauses.append(seconds)
    assert pauses == [29, 59, 59, 59]
    fake.conduct = ""
    external.check(server)
    server.refresh_from_db()
    assert external.is_due(server)


def _as_of(server: ExternalServer, at) -> ExternalServer:
    server.checked_at = at
    return server


def test_the_clock_asks_only_those_whose_time_has_come(running, monkeypatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(external_tasks, "_send", sent.append)
    well, off = known(running("a"), "well"), known(running("b"), "off")
    failing = known(running("c", conduct="500"), "failing")
    external_actions.disable(off, by=None)
    external_tasks.tick()
    assert sent == [well.pk]
    ExternalServer.objects.filter(pk=failing.pk).update(checked_at=timezone.now() - timedelta(hours=1))
    external_tasks.tick()
    assert set(sent) == {well.pk, failing.pk}


def test_workers_know_the_tasks_and_the_clock_sends_them(settings) -> None:
    app.loader.import_default_modules()
    scheduled = {one["task"] for one in settings.CELERY_BEAT_SCHEDULE.values()}
    assert external_tasks.tick.name in scheduled
    assert {external_tasks.tick.name, external_tasks.check_server.name} <= set(app.tasks)


# Serving


def test_a_served_model_has_one_instance_that_follows_its_server(running) -> None:
    fake = running("llama3", "other")
    served = served_from(fake)
    instance = only(served)
    assert (instance.state, instance.node, instance.place) == (S.READY, None, "box")
    fake.conduct = "500"
    external.check(served.external)
    assert only(served).state == S.UNREACHABLE
    assert only(served).reason == "box: It answers with an error (500)."
    fake.conduct = ""
    external.check(ExternalServer.objects.get())
    assert (only(served).state, only(served).pk) == (S.READY, instance.pk)
    fake.models.remove("llama3")
    external.check(ExternalServer.objects.get())
    assert "doesn't offer llama3" in only(served).reason
    assert instance.changes.filter(new=S.STARTING).get().reason == "Asking box."
    moves = [change.new for change in reversed(instance.changes.all())]
    assert moves == ["starting", "ready", "unreachable", "ready", "unreachable"]


def test_a_stopped_model_and_a_server_switched_off_are_stopped(running) -> None:
    served = served_from(running("llama3"))
    server = served.external
    actions.stop(served, by=None)
    assert only(served).state == S.STOPPED
    actions.start(served, by=None)
    assert only(served).state == S.READY
    external_actions.disable(server, by=None)
    served.refresh_from_db()
    assert (only(served).state, served.enabled, served.desired_replicas) == (S.STOPPED, True, 0)
    with pytest.raises(Conflict, match="switched off"):
        actions.start(ServedModel.objects.get(), by=None)
    external_actions.enable(server, by=None)
    # Nobody knows yet what it says today.
    assert only(served).state == S.STARTING
    external.check(ExternalServer.objects.get())
    served.refresh_from_db()
    assert (only(served).state, served.desired_replicas) == (S.READY, 1)


def test_settling_twice_moves_once_and_never_makes_a_second_instance(running) -> None:
    served = served_from(running("llama3"))
    changes = only(served).changes.count()
    external.settle(served.pk)
    external.settle_all(served.external_id)
    assert only(served).changes.count() == changes


@pytest.mark.parametrize("state", [one for one in S if one != S.READY])
def test_from_any_state_it_comes_to_the_right_one(running, state: S) -> None:
    served = served_from(running("llama3"))
    Instance.objects.update(state=state)
    external.settle(served.pk)
    assert only(served).state == S.READY


def test_a_server_that_comes_and_goes_writes_no_endless_story(running, monkeypatch) -> None:
    monkeypatch.setattr(external, "_KEPT_CHANGES", 3)
    fake = running("llama3")
    served = served_from(fake)
    for conduct in ("500", "", "500", "", "500"):
        fake.conduct = conduct
        external.check(ExternalServer.objects.get())
    assert only(served).changes.count() == 3
    assert only(served).changes.first().new == S.UNREACHABLE


def test_what_runs_elsewhere_is_not_restarted_or_scaled_here(running) -> None:
    served = served_from(running("llama3"))
    with pytest.raises(Conflict, match="box"):
        actions.restart(served, by=None)
    with pytest.raises(Conflict, match="box"):
        actions.scale(served, by=None, replicas=2)


def test_only_what_is_offered_is_served_and_only_once(running, admin: User) -> None:
    server = known(running("llama3"))
    with pytest.raises(Conflict, match="doesn't offer"):
        external_actions.serve(server, "gpt-9", by=admin)
    external_actions.serve(server, "llama3", by=admin)
    with pytest.raises(Conflict, match="served already, as llama3"):
        external_actions.serve(server, "llama3", by=admin, slug="again")
    assert [entry.verb for entry in AuditEntry.objects.filter(by=admin)] == ["model.add"]


def test_short_names_are_plain_and_never_taken(running, served: ServedModel) -> None:
    box = known(running("x"), "My Box")
    assert external.suggest_slug(box, "ai/smollm2:135M-Q4_0") == "smollm2-135m-q4_0"
    assert external.suggest_slug(box, "hub.example/vendor/llama3.2:latest") == "llama3-2"
    assert external.suggest_slug(box, "fake-model") == "fake-model-my-box"
    ServedModel.objects.create(slug="fake-model-my-box", name="x", file=served.file)
    assert external.suggest_slug(box, "fake-model") == "fake-model-my-box-2"
    assert external.suggest_slug(box, "config") == "config-my-box"
    assert external.suggest_slug(box, "模型") == "my-box-model"
    with pytest.raises(Conflict, match="short name"):
        external_actions.serve(box, "x", by=None, slug="fake-model")
    with pytest.raises(InvalidInput, match="portal's own"):
        external_actions.serve(box, "x", by=None, slug="external")


def test_offers_of_all_servers_are_one_list_without_doubles(running, served: ServedModel) -> None:
    first, second = known(running("llama3", "Fake"), "first"), known(running("llama3", "zeta"), "second")
    known(running("hidden"), "off")
    external_actions.disable(ExternalServer.objects.get(name="off"), by=None)
    mine = external_actions.serve(first, "llama3", by=None)
    seen = {
        offer.name: ([(place.server.name, place.served) for place in offer.places], list(offer.twins))
        for offer in external.offers()
    }
    assert list(seen) == ["Fake", "llama3", "zeta"]
    assert seen["llama3"] == ([("first", mine), ("second", None)], [])
    assert seen["Fake"] == ([("first", None)], [served])
    assert second.name == "second"


def test_a_server_is_not_removed_while_it_serves(running, admin: User) -> None:
    served = served_from(running("llama3"))
    with pytest.raises(Conflict, match="serves llama3"):
        external_actions.remove(served.external, by=admin)
    actions.stop(served, by=admin)
    actions.remove(served, by=admin)
    external_actions.remove(ExternalServer.objects.get(), by=admin)
    assert not ExternalServer.objects.exists()
    assert AuditEntry.objects.filter(verb="external.remove", by=admin).exists()


def test_teams_decide_about_external_models_too(running) -> None:
    member, team = User.objects.create_user("member"), Team.objects.create(name="Team")
    server = known(running("llama3"))
    external_actions.serve(server, "llama3", by=None, teams=[team])
    assert not access.visible(member)
    team.members.add(member)
    assert overview.of(access.visible(member).get()).word == "ready"


# Pages


def test_the_page_without_servers_says_what_belongs_there(staff: Client) -> None:
    page = staff.get("/models/external/").content.decode()
    assert "No server yet" in page
    for kind in ("Docker Model Runner", "Ollama", "vLLM", "llamaproj"):
        assert kind in page


def test_adding_a_server_says_at_once_what_it_offers(staff: Client, running) -> None:
    fake = running("llama3", "<b>odd</b>", key=KEY)
    form = {"name": "box", "base_url": fake.origin, "api_key": KEY}
    page = staff.post("/models/external/add/", form, follow=True).content.decode()
    assert "answers and offers 2 models" in page
    assert f"completed to {fake.base_url}" in page
    assert "&lt;b&gt;odd" in page
    assert "<b>odd" not in page
    server = ExternalServer.objects.get()
    for path in ("", "present/", f"{server.pk}/edit/"):
        assert KEY not in staff.get(f"/models/external/{path}").content.decode()


def test_mistakes_in_the_form_are_said_beside_their_fields(staff: Client, running) -> None:
    form = {"name": "box", "base_url": "http://me:pw@host/v1", "api_key": "a b"}
    answer = staff.post("/models/external/add/", form)
    assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert set(answer.context["form"].errors) == {"base_url", "api_key"}
    server = known(running("x", key=KEY))
    form = {"name": "box", "base_url": "http://elsewhere:1/v1", "api_key": ""}
    answer = staff.post(f"/models/external/{server.pk}/edit/", form)
    assert "another server" in answer.content.decode()
    server.refresh_from_db()
    assert server.has_key


def test_a_kept_key_stays_until_it_is_forgotten(staff: Client, running) -> None:
    fake = running("x", key=KEY)
    server = known(fake)
    path, form = f"/models/external/{server.pk}/edit/", {"name": "renamed", "base_url": fake.base_url}
    assert "offers 1 model." in staff.post(path, form, follow=True).content.decode()
    server.refresh_from_db()
    assert (server.name, server.api_key) == ("renamed", KEY)
    page = staff.post(path, form | {"forget_key": "on"}, follow=True).content.decode()
    assert "It wants a key" in page
    server.refresh_from_db()
    assert not server.has_key


def test_serving_from_the_page(staff: Client, running, served: ServedModel) -> None:
    fake = running("vendor/fake-model:latest")
    server = known(fake)
    page = staff.get("/models/external/").content.decode()
    link = f"/models/external/{server.pk}/serve/?model=vendor%2Ffake-model%3Alatest"
    assert link in page
    assert "Also served from a file" in page
    form = staff.get(link).context["form"]
    assert form.initial == {"name": "fake-model", "slug": "fake-model-box"}
    answer = staff.post(link, form.initial, follow=True)
    assert answer.redirect_chain[-1][0] == "/models/fake-model-box/"
    shown = answer.content.decode()
    assert 'data-state="ready"' in shown
    assert "vendor/fake-model:latest" in shown
    assert "model-log" not in shown
    assert ">Restart<" not in shown
    assert "served as" in staff.get("/models/external/").content.decode()
    assert staff.post(link, {"name": "x", "slug": "y"}).status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert staff.get(f"/models/external/{server.pk}/serve/?model=no").status_code == HTTPStatus.CONFLICT
    assert staff.get("/models/fake-model-box/edit/").status_code == HTTPStatus.OK
    assert staff.get("/models/").status_code == HTTPStatus.OK


def test_buttons_of_a_server(staff: Client, running) -> None:
    served = served_from(running("llama3"))
    path = f"/models/external/{served.external_id}"
    assert "offers 1 model." in staff.post(f"{path}/check/", follow=True).content.decode()
    assert "switched off" in staff.post(f"{path}/disable/", follow=True).content.decode()
    assert "switched on" in staff.post(f"{path}/enable/", follow=True).content.decode()
    assert "serves llama3" in staff.post(f"{path}/remove/", follow=True).content.decode()
    assert ExternalServer.objects.exists()
    for verb in ("check", "disable", "enable", "remove"):
        assert staff.get(f"{path}/{verb}/").status_code == HTTPStatus.METHOD_NOT_ALLOWED


def test_members_reach_nothing_of_it(client: Client, running) -> None:
    fake = running("llama3", key=KEY)
    served = served_from(fake)
    client.force_login(User.objects.create_user("member"))
    path = f"/models/external/{served.external_id}"
    for page in ("/models/external/", "/models/external/present/", "/models/external/add/", f"{path}/edit/"):
        assert client.get(page).status_code == HTTPStatus.FORBIDDEN
    for verb in ("check", "disable", "enable", "remove", "edit", "serve"):
        assert client.post(f"{path}/{verb}/").status_code == HTTPStatus.FORBIDDEN
    shown = client.get("/models/llama3/").content.decode()
    assert fake.origin not in shown
    assert "a server elsewhere" in shown


def test_a_long_list_is_searched(staff: Client, running) -> None:
    known(running(*(f"model-{number}" for number in range(300))))
    page = staff.get("/models/external/").content.decode()
    assert "200 of 300 are shown" in page
    found = staff.get("/models/external/?q=MODEL-29").content.decode()
    assert found.count("data-offer=") == 11
    assert "None has" in staff.get("/models/external/?q=nothing").content.decode()


# Admin site


def test_the_admin_site_goes_through_the_same_actions(
    staff: Client, admin: User, running, nobody_woken
) -> None:
    fake = running("llama3", key=KEY)
    form = {"name": "box", "base_url": fake.base_url, "api_key": KEY}
    staff.post("/admin/models_admin/externalserver/add/", form)
    server = ExternalServer.objects.get()
    assert AuditEntry.objects.get(verb="external.add").by == admin
    change = f"/admin/models_admin/externalserver/{server.pk}/change/"
    assert KEY not in staff.get(change).content.decode()
    staff.post(change, {"name": "renamed", "base_url": fake.base_url, "api_key": ""})
    server.refresh_from_db()
    assert (server.name, server.api_key) == ("renamed", KEY)
    external.check(server)
    chosen = {"action": "serve_model", "_selected_action": [server.pk]}
    refused = staff.post("/admin/models_admin/externalserver/", chosen | {"model": "other"}, follow=True)
    assert "offer other" in refused.content.decode()
    staff.post("/admin/models_admin/externalserver/", chosen | {"model": "llama3"})
    served = ServedModel.objects.get(external=server)
    assert AuditEntry.objects.get(verb="model.add").by == admin
    chosen = {"action": "disable_servers", "_selected_action": [server.pk]}
    staff.post("/admin/models_admin/externalserver/", chosen)
    assert only(served).state == S.STOPPED
    staff.post(f"/admin/models_admin/externalserver/{server.pk}/delete/", {"post": "yes"})
    assert ExternalServer.objects.exists()
    page = staff.get("/admin/models_admin/externalserver/").content.decode()
    assert "renamed" in page
    assert "switched off" in page


# Command line


def manage(*arguments: str) -> str:
    out = io.StringIO()
    call_command("models", "external", *arguments, stdout=out)
    return out.getvalue()


def test_the_command_line_does_the_same(running, monkeypatch) -> None:
    fake = running("llama3", key=KEY)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{KEY}\n"))
    assert "offers 1 model" in manage("add", "box", fake.origin, "--key-from-stdin")
    listed = manage("list")
    assert "box" in listed
    assert "llama3" in listed
    assert KEY not in listed
    assert "llama3" in manage("serve", "box", "llama3")
    assert "offers 1 model" in manage("check", "box")
    with pytest.raises(CommandError, match="serves llama3"):
        manage("remove", "box")
    assert "Saved" in manage("set", "box", "--name", "crate")
    assert ExternalServer.objects.get().api_key == KEY
    with pytest.raises(CommandError, match="another server"):
        manage("set", "crate", "--address", "http://elsewhere:1/v1")
    manage("set", "crate", "--name", "box", "--forget-key")
    assert not ExternalServer.objects.get().has_key
    manage("disable", "box")
    assert ServedModel.objects.get().desired_replicas == 0
    manage("enable", "box")
    with pytest.raises(CommandError, match="no server named"):
        manage("check", "nothing")
    with pytest.raises(CommandError, match="http"):
        manage("add", "other", "ftp://x")


def test_a_model_of_a_file_is_left_alone(served: ServedModel, node: Node) -> None:
    Instance.objects.create(served=served, node=node, state=S.READY)
    external.settle(served.pk)
    assert only(served).state == S.READY
    assert ModelFile.objects.count() == 1
