import json
from http import HTTPStatus
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts import key_actions
from accounts.key_rights import KeyRights
from accounts.models import ApiKey, AuditEntry, Team, User
from models_admin import demand, notes, tasks
from models_admin.demand import Report
from models_admin.engine import launch_config
from models_admin.engine.slots import Slot
from models_admin.external import tasks as external_tasks
from models_admin.hub import actions as download_actions
from models_admin.hub import tasks as download_tasks
from models_admin.models import Download, ExternalServer, Instance, ModelFile, Node, PortalConfig, ServedModel
from models_admin.models.download import WantedFile
from models_admin.states import InstanceState as S

pytestmark = pytest.mark.django_db

JSON = "application/json"


@pytest.fixture(autouse=True)
def nobody_woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    woken: list[str] = []
    monkeypatch.setattr(tasks, "wake", lambda name: woken.append(name))
    monkeypatch.setattr(external_tasks, "check_soon", lambda pk: None)
    monkeypatch.setattr(download_tasks, "send", lambda *_: None)
    return woken


@pytest.fixture
def boss() -> User:
    return User.objects.create_user("boss", is_staff=True)


@pytest.fixture
def staff(client: Client, boss: User) -> Client:
    client.force_login(boss)
    return client


@pytest.fixture
def member(db: None) -> Client:
    member = Client()
    member.force_login(User.objects.create_user("member"))
    return member


@pytest.fixture
def ready(served: ServedModel, node: Node) -> Instance:
    ServedModel.objects.update(enabled=True, desired_replicas=1)
    return Instance.objects.create(
        served=served,
        node=node,
        state=S.READY,
        port=20_001,
        pid=4321,
        pid_created=1.0,
        memory_bytes=2**30,
        started_at=timezone.now(),
        launched=launch_config.of(served).snapshot(),
    )


def problem(response: Any, status: HTTPStatus, code: str, param: str | None = None) -> dict[str, Any]:
    """The body of a refusal, checked for its form."""
    assert response.status_code == status, response.content
    assert response["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "code", "param", "request_id"} <= set(body)
    assert (body["status"], body["title"], body["code"]) == (status, status.phrase, code), body
    assert body["param"] == param, body
    assert body["detail"]
    return body


# Who may do what ----------------------------------------------------------------------------------------------------

EVERYTHING = [
    ("get", "models/", "member"),
    ("post", "models/", "staff"),
    ("get", "models/fake-model/", "member"),
    ("put", "models/fake-model/", "staff"),
    ("patch", "models/fake-model/", "staff"),
    ("delete", "models/fake-model/", "staff"),
    ("post", "models/fake-model/start/", "staff"),
    ("post", "models/fake-model/stop/", "staff"),
    ("post", "models/fake-model/restart/", "staff"),
    ("post", "models/fake-model/scale/", "staff"),
    ("get", "models/fake-model/remedies/", "staff"),
    ("post", "models/fake-model/remedies/", "staff"),
    ("get", "model-files/", "staff"),
    ("get", "model-files/{file}/", "staff"),
    ("post", "model-files/scan/", "staff"),
    ("get", "instances/", "staff"),
    ("get", "instances/{instance}/", "staff"),
    ("get", "instances/{instance}/logs/", "staff"),
    ("get", "instances/{instance}/slots/", "staff"),
    ("get", "instances/{instance}/timeline/", "staff"),
    ("get", "nodes/", "staff"),
    ("get", "nodes/{node}/", "staff"),
    ("patch", "nodes/{node}/", "staff"),
    ("delete", "nodes/{node}/", "staff"),
    ("get", "downloads/", "staff"),
    ("post", "downloads/", "staff"),
    ("get", "downloads/{download}/", "staff"),
    ("post", "downloads/{download}/cancel/", "staff"),
    ("post", "downloads/{download}/retry/", "staff"),
    ("get", "external-servers/", "staff"),
    ("post", "external-servers/", "staff"),
    ("get", "external-servers/{external}/", "staff"),
    ("patch", "external-servers/{external}/", "staff"),
    ("delete", "external-servers/{external}/", "staff"),
    ("post", "external-servers/{external}/check/", "staff"),
    ("post", "external-servers/{external}/serve/", "staff"),
    ("get", "config/", "staff"),
    ("put", "config/", "staff"),
    ("patch", "config/", "staff"),
    ("post", "config/", "staff"),
    ("get", "health/", "member"),
]


def file_on_hub() -> WantedFile:
    return WantedFile(path="m.gguf", target="a/b/m.gguf", size_bytes=10, sha256="", git_sha1="")


def call(client: Client, method: str, path: str, body: object = None, **headers: str) -> Any:
    data = {} if method == "get" else {"data": json.dumps(body or {}), "content_type": JSON}
    return getattr(client, method)(f"/api/v1/{path}", **data, headers=headers)


@pytest.mark.parametrize(("method", "path", "least"), EVERYTHING)
def test_each_door_opens_for_the_right_people(
    member: Client, ready: Instance, boss: User, method: str, path: str, least: str
) -> None:
    demand.report(ready.pk, Report(slots=2, busy=1, queued=0))
    path = path.format(
        file=ready.served.file.pk,
        instance=ready.pk,
        node=ready.node.name,
        download=Download.objects.create(node=ready.node, repository="a/b", files=[file_on_hub()]).pk,
        external=ExternalServer.objects.create(name="Other", base_url="http://127.0.0.1:9/v1").pk,
    )
    problem(call(Client(), method, path), HTTPStatus.UNAUTHORIZED, "not_authenticated")
    if least == "staff":
        problem(call(member, method, path), HTTPStatus.FORBIDDEN, "not_allowed")
        assert not AuditEntry.objects.exists()
    else:
        assert call(member, method, path).status_code in {HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE}
    signed_in = Client()
    signed_in.force_login(boss)
    allowed = call(signed_in, method, path)
    assert allowed.status_code not in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
    assert allowed.status_code != HTTPStatus.INTERNAL_SERVER_ERROR


def test_the_list_of_doors_is_whole(tmp_path: Any) -> None:
    call_command(
        "spectacular", "--validate", "--fail-on-warn", "--format", "openapi-json", "--file", tmp_path / "s"
    )
    schema = json.loads((tmp_path / "s").read_text())
    names = {"file": "{id}", "instance": "{id}", "node": "{name}", "download": "{id}", "external": "{id}"}
    ours = {(method, path.format(**names).replace("fake-model", "{slug}")) for method, path, _ in EVERYTHING}
    tested = (
        "models/",
        "model-files/",
        "instances/",
        "nodes/",
        "downloads/",
        "external-servers/",
        "config/",
        "health/",
    )
    found = {
        (method, path.removeprefix("/api/v1/"))
        for path, methods in schema["paths"].items()
        for method in methods
        if path.removeprefix("/api/v1/").startswith(tested) and not path.endswith("/metrics/")
    }
    assert found == ours
    assert "default" in schema["paths"]["/api/v1/models/"]["get"]["responses"]


def test_a_teams_model_does_not_exist_for_others(member: Client, ready: Instance) -> None:
    team = Team.objects.create(name="Team")
    ready.served.teams.add(team)
    assert call(member, "get", "models/").json()["results"] == []
    problem(call(member, "get", "models/fake-model/"), HTTPStatus.NOT_FOUND, "not_found")
    team.members.add(User.objects.get(username="member"))
    assert call(member, "get", "models/fake-model/").json()["slug"] == "fake-model"


def test_members_see_nothing_of_machines(member: Client, ready: Instance) -> None:
    Instance.objects.update(state=S.FAILED, reason="Given up: /srv/secret.gguf")
    for path in ("models/", "models/fake-model/"):
        text = call(member, "get", path).content.decode()
        assert "could not be started" in text
        for secret in ("4321", "20001", ready.served.file.path, ready.node.name, "secret", str(ready.pk)):
            assert secret not in text


def test_a_session_needs_its_token_and_a_key_does_not(boss: User, served: ServedModel) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(boss)
    assert call(strict, "get", "models/").status_code == HTTPStatus.OK
    problem(call(strict, "post", "models/fake-model/start/"), HTTPStatus.FORBIDDEN, "not_allowed")
    rights = KeyRights(scopes=("read", "write"))
    _, key = key_actions.create_api_key(user=boss, name="ci", by=boss, rights=rights)
    program = Client(enforce_csrf_checks=True)
    started = call(program, "post", "models/fake-model/start/", authorization=f"Bearer {key}")
    assert started.status_code == HTTPStatus.OK
    assert AuditEntry.objects.get(verb="model.start").by == boss


def test_a_key_is_as_good_as_its_owner(boss: User, served: ServedModel) -> None:
    eve, rights = User.objects.create_user("eve"), KeyRights(scopes=("read",))
    row, key = key_actions.create_api_key(user=eve, name="k", by=None, rights=rights)
    program = Client()
    assert call(program, "get", "models/", authorization=f"Bearer {key}").status_code == HTTPStatus.OK
    problem(
        call(program, "get", "nodes/", authorization=f"Bearer {key}"), HTTPStatus.FORBIDDEN, "not_allowed"
    )
    for wrong in ("Bearer sk-wrong", "Bearer", "Basic eDp5", f"Token {key}"):
        refused = call(program, "get", "models/", authorization=wrong)
        problem(refused, HTTPStatus.UNAUTHORIZED, "not_authenticated")
        assert refused["www-authenticate"] == "Bearer"
    key_actions.revoke_api_key(row, by=None)
    refused = call(program, "get", "models/", authorization=f"Bearer {key}")
    problem(refused, HTTPStatus.UNAUTHORIZED, "not_authenticated")
    assert ApiKey.objects.get().last_used_at is not None


# Models -------------------------------------------------------------------------------------------------------------


def test_a_model_is_added_changed_and_removed(staff: Client, served: ServedModel) -> None:
    body = {
        "file": served.file.pk,
        "slug": "second",
        "slots": 3,
        "extra_flags": ["--mlock"],
        "lora": ["/a.gguf"],
    }
    added = call(staff, "post", "models/", body)
    assert added.status_code == HTTPStatus.CREATED
    assert added.json()["effective"]["slots"] == 3
    assert added.json()["state"] == "stopped"
    row = ServedModel.objects.get(slug="second")
    assert (row.extra_flags, row.lora, row.enabled) == (["--mlock"], ["/a.gguf"], False)
    problem(call(staff, "post", "models/", body), HTTPStatus.CONFLICT, "conflict", "slug")

    changed = call(staff, "patch", "models/second/", {"slots": 5, "teams": []})
    assert (changed.json()["slots"], changed.json()["lora"]) == (5, ["/a.gguf"])
    assert call(staff, "patch", "models/second/", {"slots": 5}).json()["slots"] == 5
    replaced = call(staff, "put", "models/second/", {"threads": 2, "name": "Other"}).json()
    assert (replaced["slots"], replaced["threads"], replaced["lora"], replaced["name"]) == (
        None,
        2,
        [],
        "Other",
    )
    assert replaced["effective"]["slots"] == 4

    assert call(staff, "delete", "models/second/").status_code == HTTPStatus.NO_CONTENT
    problem(call(staff, "delete", "models/second/"), HTTPStatus.NOT_FOUND, "not_found")
    verbs = [entry.verb for entry in AuditEntry.objects.order_by("at")]
    assert verbs == ["model.add", "model.change", "model.change", "model.remove"]


def test_what_was_read_can_be_written_back(staff: Client, served: ServedModel) -> None:
    read = call(staff, "get", "models/fake-model/").json()
    written = call(staff, "put", "models/fake-model/", read)
    assert written.status_code == HTTPStatus.OK, written.content
    assert written.json() == read
    assert not AuditEntry.objects.exists()


def test_what_the_model_is_made_of_stays(staff: Client, served: ServedModel) -> None:
    problem(
        call(staff, "patch", "models/fake-model/", {"slug": "x"}), HTTPStatus.CONFLICT, "conflict", "slug"
    )
    other = ModelFile.objects.create(
        node=served.file.node, path="/o.gguf", size_bytes=1, modified_at=timezone.now()
    )
    refused = call(staff, "patch", "models/fake-model/", {"file": other.pk})
    problem(refused, HTTPStatus.CONFLICT, "conflict", "file")


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("slots", {"slots": 0}),
        ("slots", {"slots": "many"}),
        ("slots", {"slots": 10**30}),
        ("context_tokens", {"context_tokens": 1.5}),
        ("ubatch_tokens", {"ubatch_tokens": 4096}),
        ("last_port", {"first_port": 2000, "last_port": 1999}),
        ("pooling", {"pooling": "mean"}),
        ("pooling", {"pooling": "median"}),
        ("cache_type_v", {"cache_type_v": "q8_0", "flash_attention": "off"}),
        ("binary", {"binary": "llama-server"}),
        ("lora", {"lora": ["adapter"]}),
        ("lora", {"lora": "adapter"}),
        ("lora.0", {"lora": ["/a\0b"]}),
        ("extra_flags", {"extra_flags": ["--api-key", "x"]}),
        ("node_labels", {"node_labels": [""]}),
        ("max_replicas", {"min_replicas": 3, "max_replicas": 2}),
        ("teams", {"teams": ["Nobody"]}),
        ("name", {"name": ""}),
        ("vision", {"vision": "perhaps"}),
        ("slotz", {"slotz": 3}),
        ("file", {"file": 10**30}),
    ],
)
def test_a_wrong_parameter_is_named(
    staff: Client, served: ServedModel, param: str, body: dict[str, Any]
) -> None:
    before = ServedModel.objects.values().get()
    refused = call(staff, "patch", "models/fake-model/", body)
    refusal = problem(refused, HTTPStatus.BAD_REQUEST, "invalid_request", refused.json().get("param"))
    assert refusal["param"].split(".")[0] == param.split(".")[0]
    assert ServedModel.objects.values().get() == before
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize(
    ("param", "body"),
    [("file", {}), ("file", {"file": 0}), ("slug", {"slug": "config"}), ("slug", {"slug": "a b"})],
)
def test_a_model_that_can_not_be_added(
    staff: Client, served: ServedModel, param: str, body: dict[str, Any]
) -> None:
    body = ({"file": served.file.pk} if param != "file" else {}) | body
    problem(call(staff, "post", "models/", body), HTTPStatus.BAD_REQUEST, "invalid_request", param)
    assert ServedModel.objects.count() == 1


@pytest.mark.parametrize("body", ["", "[]", "{", '"a"', "null", '{"slots": 1e999}', "[" * 5000, "\xff"])
def test_a_body_that_is_no_object_is_a_problem(staff: Client, served: ServedModel, body: str) -> None:
    for path in ("models/fake-model/", "config/", f"nodes/{served.file.node.name}/"):
        answer = staff.patch(f"/api/v1/{path}", body, content_type=JSON)
        if body:
            assert answer.status_code == HTTPStatus.BAD_REQUEST, (path, answer.content)
            assert answer.json()["code"] == "invalid_request"
    refused = staff.patch("/api/v1/config/", "a=1", content_type="application/x-www-form-urlencoded")
    assert refused.status_code == HTTPStatus.UNSUPPORTED_MEDIA_TYPE


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    [*launch_config.NAMES, "name", "teams", "file", "min_replicas", "node_labels", "idle_timeout_s"]
)


@given(st.dictionaries(NAMES, ANYTHING, max_size=4))
@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_is_sent_is_taken_or_refused(
    staff: Client, served: ServedModel, body: dict[str, Any]
) -> None:
    fine = {HTTPStatus.OK, HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT}
    for path in (
        "models/fake-model/",
        "config/",
        f"nodes/{served.file.node.name}/",
        "models/fake-model/scale/",
    ):
        method = "post" if path.endswith("scale/") else "patch"
        answer = call(staff, method, path, body)
        assert answer.status_code in fine, (path, answer.content)
    assert call(staff, "get", "models/fake-model/").status_code == HTTPStatus.OK


def test_a_broken_file_is_not_served(staff: Client, served: ServedModel) -> None:
    ModelFile.objects.update(error="It is broken.")
    body = {"file": served.file.pk, "slug": "second"}
    assert (
        "broken" in problem(call(staff, "post", "models/", body), HTTPStatus.CONFLICT, "conflict")["detail"]
    )


def test_the_verbs(staff: Client, served: ServedModel, nobody_woken: list[str]) -> None:
    for _ in range(2):
        assert call(staff, "post", "models/fake-model/start/").json()["desired_replicas"] == 1
    assert call(staff, "post", "models/fake-model/restart/").status_code == HTTPStatus.OK
    scaled = call(staff, "post", "models/fake-model/scale/", {"replicas": 3}).json()
    assert (scaled["min_replicas"], scaled["max_replicas"], scaled["desired_replicas"]) == (3, 3, 3)
    scaled = call(staff, "post", "models/fake-model/scale/", {"min_replicas": 0, "max_replicas": 2}).json()
    assert (scaled["min_replicas"], scaled["max_replicas"], scaled["on_demand"]) == (0, 2, True)
    for _ in range(2):
        assert call(staff, "post", "models/fake-model/stop/").json()["desired_replicas"] == 0
    verbs = [entry.verb for entry in AuditEntry.objects.order_by("at")]
    assert verbs == ["model.start", "model.restart", "model.scale", "model.scale", "model.stop"]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("replicas", {}),
        ("replicas", {"replicas": 17}),
        ("replicas", {"replicas": -1}),
        ("replicas", {"replicas": 1, "min_replicas": 1}),
        ("replicas", {"min_replicas": 2, "max_replicas": 1}),
        ("max_replicas", {"replicas": 1, "max_replicas": 2}),
    ],
)
def test_a_number_of_replicas_that_can_not_be(
    staff: Client, served: ServedModel, param: str, body: dict[str, Any]
) -> None:
    refused = call(staff, "post", "models/fake-model/scale/", body)
    problem(refused, HTTPStatus.BAD_REQUEST, "invalid_request", param)


def test_what_runs_is_not_removed(staff: Client, ready: Instance) -> None:
    problem(call(staff, "delete", "models/fake-model/"), HTTPStatus.CONFLICT, "model_running")


def test_a_change_says_what_it_replaces_and_a_dry_run_does_nothing(staff: Client, ready: Instance) -> None:
    dry = call(staff, "patch", "models/fake-model/?dry_run=true", {"slots": 3})
    assert (dry.json()["outdated_replicas"], dry.json()["slots"]) == (1, 3)
    assert ServedModel.objects.get().slots == 2
    assert not AuditEntry.objects.exists()
    assert call(staff, "patch", "models/fake-model/", {"slots": 3}).json()["outdated_replicas"] == 1
    assert ServedModel.objects.get().slots == 3


def test_lists_are_paginated_filtered_searched_and_ordered(
    staff: Client, ready: Instance, node: Node
) -> None:
    for number in range(5):
        ServedModel.objects.create(
            slug=f"m{number}", name=f"M{number}", file=ready.served.file, min_replicas=number % 2
        )

    def slugs(query: str) -> list[str]:
        return [one["slug"] for one in call(staff, "get", f"models/?{query}").json()["results"]]

    assert slugs("ordering=-slug&page_size=2") == ["m4", "m3"]
    assert slugs("ordering=-slug&page_size=2&page=3") == ["m0", "fake-model"]
    assert slugs("state=ready") == ["fake-model"]
    assert slugs("enabled=true") == ["fake-model"]
    assert slugs("on_demand=true&ordering=slug") == ["m0", "m2", "m4"]
    assert slugs("search=fake") == ["fake-model"]
    assert slugs("team=Nobody") == []
    problem(call(staff, "get", "models/?page=99"), HTTPStatus.NOT_FOUND, "not_found")
    problem(call(staff, "get", "models/?state=x"), HTTPStatus.BAD_REQUEST, "invalid_request", "state")
    problem(call(staff, "get", "models/?search=%00"), HTTPStatus.BAD_REQUEST, "invalid_request", None)
    for param, wrong in {"ordering": "password", "page_size": "1000000", "enabled": "perhaps"}.items():
        refused = call(staff, "get", f"models/?{param}={wrong}")
        problem(refused, HTTPStatus.BAD_REQUEST, "invalid_request", param)


def test_lists_need_a_bounded_number_of_queries(
    staff: Client, ready: Instance, node: Node, django_assert_max_num_queries: Any
) -> None:
    team = Team.objects.create(name="Team")
    for number in range(20):
        served = ServedModel.objects.create(slug=f"m{number}", name=f"M{number}", file=ready.served.file)
        served.teams.add(team)
        Instance.objects.create(served=served, node=node)
    for path in ("models/", "model-files/", "instances/", "nodes/"):
        with django_assert_max_num_queries(14):
            call(staff, "get", path)


# The rest -----------------------------------------------------------------------------------------------------------


def test_files_and_their_scan(
    staff: Client, served: ServedModel, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(tasks, "ask_scan", asked.append)
    Node.objects.update(last_seen=timezone.now())
    ModelFile.objects.create(
        node=node, path="/b.gguf", size_bytes=1, modified_at=timezone.now(), error="Broken.", missing=True
    )
    listed = call(staff, "get", "model-files/?broken=false").json()["results"]
    assert [(one["path"], one["served_as"]) for one in listed] == [(served.file.path, ["fake-model"])]
    assert call(staff, "get", "model-files/?served=false").json()["results"][0]["path"] == "/b.gguf"
    assert call(staff, "get", f"model-files/{served.file.pk}/").json()["node"] == node.name
    assert call(staff, "post", "model-files/scan/").status_code == HTTPStatus.ACCEPTED
    assert asked == [node.name]
    problem(call(staff, "post", "model-files/"), HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed")


def test_what_a_replica_does(staff: Client, ready: Instance) -> None:
    notes.tell_log(ready.pk, ["one", "two"])
    ready.changes.create(old=S.STARTING, new=S.READY, reason="Ready.")
    where = f"instances/{ready.pk}/"
    shown = call(staff, "get", where).json()
    assert (shown["model"], shown["port"], shown["state"]) == ("fake-model", 20_001, "ready")
    assert "api_key" not in json.dumps(shown)
    assert call(staff, "get", f"{where}logs/").json() == {"lines": ["one", "two"]}
    assert call(staff, "get", f"{where}timeline/").json()["results"][0]["new"] == "ready"
    problem(call(staff, "get", f"{where}slots/"), HTTPStatus.NOT_FOUND, "not_found")
    demand.report(ready.pk, Report(slots=2, busy=1, queued=3))
    notes.tell_slots(ready.pk, [Slot(0, True, 1024, 40, 7)])
    told = call(staff, "get", f"{where}slots/").json()
    assert (told["busy"], told["queued"], told["slots"][0]["used_tokens"]) == (1, 3, 40)
    assert call(staff, "get", "instances/?state=ready&state=failed&model=fake-model").json()["count"] == 1
    assert call(staff, "get", "instances/?state=failed").json()["count"] == 0


def test_what_administrators_say_of_a_machine(staff: Client, ready: Instance, node: Node) -> None:
    where = f"nodes/{node.name}/"
    assert call(staff, "get", where).json()["alive"] is False
    said = {"labels": ["gpu"], "accepts_replicas": False, "memory_limit_bytes": 2**33}
    changed = call(staff, "patch", where, said).json()
    assert said.items() <= changed.items()
    assert changed["replicas"] == 1
    assert call(staff, "patch", where, {"memory_limit_bytes": None}).json()["memory_limit_bytes"] is None
    for param, value in (("labels.0", [""]), ("labels", "gpu"), ("memory_limit_bytes", -1), ("cpus", 2)):
        problem(
            call(staff, "patch", where, {param.split(".")[0]: value}),
            HTTPStatus.BAD_REQUEST,
            "invalid_request",
            param,
        )
    # What its worker says isn't an administrator's to set.
    assert call(staff, "patch", where, {"address": "10.0.0.1"}).json()["address"] == node.address
    assert [entry.verb for entry in AuditEntry.objects.all()] == ["node.change", "node.change"]
    problem(call(staff, "delete", where), HTTPStatus.CONFLICT, "conflict")


def test_downloads(staff: Client, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_tasks, "send", lambda *_: None)
    row = Download.objects.create(
        node=node, repository="a/b", files=[file_on_hub()], size_bytes=10, done_bytes=5
    )
    where = f"downloads/{row.pk}/"
    shown = call(staff, "get", where).json()
    assert (shown["files"], shown["percent"], shown["node"]) == (["a/b/m.gguf"], 50, node.name)
    for _ in range(2):
        assert call(staff, "post", f"{where}cancel/").json()["state"] == "cancelled"
    assert call(staff, "post", f"{where}retry/").json()["state"] == "queued"
    assert call(staff, "get", "downloads/?state=queued&state=running").json()["count"] == 1
    Download.objects.update(state="done")
    problem(call(staff, "post", f"{where}cancel/"), HTTPStatus.CONFLICT, "conflict")
    problem(call(staff, "post", f"{where}retry/"), HTTPStatus.CONFLICT, "conflict")

    asked: dict[str, object] = {}

    def ask(**fields: object) -> Download:
        asked.update(fields)
        return row

    monkeypatch.setattr(download_actions, "ask", ask)
    wanted = {"node": node.name, "repository": "a/b", "path": "m.gguf"}
    assert call(staff, "post", "downloads/", wanted).status_code == HTTPStatus.ACCEPTED
    assert (asked["node"], asked["repository"], asked["path"]) == (node, "a/b", "m.gguf")
    for param, value in (("node", "nowhere"), ("repository", ""), ("path", None)):
        refused = call(staff, "post", "downloads/", wanted | {param: value})
        problem(refused, HTTPStatus.BAD_REQUEST, "invalid_request", param)


def test_servers_elsewhere(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(external_tasks, "check_soon", asked.append)
    body = {"name": "Other", "base_url": "http://127.0.0.1:9/v1", "api_key": "sk-secret"}
    added = call(staff, "post", "external-servers/", body)
    assert added.status_code == HTTPStatus.CREATED
    assert (added.json()["has_key"], "secret" in added.content.decode()) == (True, False)
    where = f"external-servers/{added.json()['id']}/"
    problem(call(staff, "post", "external-servers/", body), HTTPStatus.CONFLICT, "conflict", "name")
    problem(
        call(staff, "patch", where, {"base_url": "http://127.0.0.2:9/v1"}),
        HTTPStatus.BAD_REQUEST,
        "invalid_request",
        "api_key",
    )
    changed = call(staff, "patch", where, {"name": "Better", "enabled": False}).json()
    assert (changed["name"], changed["enabled"], changed["has_key"]) == ("Better", False, True)
    ExternalServer.objects.update(models_offered=["tiny"])
    served = call(staff, "post", f"{where}serve/", {"model": "tiny", "slug": "far"})
    assert (served.status_code, served.json()["external"]) == (HTTPStatus.CREATED, "Better")
    assert served.json()["file"] is None
    for model in ("tiny", "unknown"):
        refused = call(staff, "post", f"{where}serve/", {"model": model, "slug": "farther"})
        problem(refused, HTTPStatus.CONFLICT, "conflict")
    problem(call(staff, "delete", where), HTTPStatus.CONFLICT, "conflict")
    assert call(staff, "patch", "models/far/", {"description": "Far away."}).status_code == HTTPStatus.OK
    ServedModel.objects.all().delete()
    assert call(staff, "delete", where).status_code == HTTPStatus.NO_CONTENT
    assert call(staff, "post", f"{where}check/").status_code == HTTPStatus.NOT_FOUND


def test_the_portals_configuration(staff: Client, ready: Instance) -> None:
    first = call(staff, "get", "config/").json()
    assert (first["threads"], first["effective"]["batch_tokens"], first["outdated"]) == (None, 2048, [])
    for method, threads in (("patch", 2), ("post", 3), ("put", 4)):
        changed = call(staff, method, "config/", {"threads": threads, "idle_timeout_s": 60}).json()
        assert (changed["threads"], changed["effective"]["threads"]) == (threads, threads)
        assert changed["outdated"] == [{"model": "fake-model", "replicas": 1}]
        assert call(staff, "get", "models/fake-model/").json()["effective"]["threads"] == threads
    assert call(staff, "patch", "config/", {"slots": 8}).json()["threads"] == 4
    replaced = call(staff, "put", "config/", {"slots": 8}).json()
    assert (replaced["threads"], replaced["slots"], replaced["idle_timeout_s"]) == (None, 8, 900)
    dry = call(staff, "patch", "config/?dry_run=true", {"threads": 9}).json()
    assert dry["outdated"] == [{"model": "fake-model", "replicas": 1}]
    assert PortalConfig.current().threads is None
    for param, value in (("threads", 0), ("ubatch_tokens", 4096), ("idle_timeout_s", 0), ("nonsense", 1)):
        problem(
            call(staff, "patch", "config/", {param: value}), HTTPStatus.BAD_REQUEST, "invalid_request", param
        )
    assert {entry.verb for entry in AuditEntry.objects.all()} == {"config.change"}


def test_health_is_what_readyz_says(member: Client) -> None:
    assert set(call(member, "get", "health/").json()) == {"status", "database", "redis", "workers", "models"}


def test_what_nobody_foresaw_is_told_neutrally(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> PortalConfig:
        raise RuntimeError("a secret")

    monkeypatch.setattr(PortalConfig, "current", broken)
    body = problem(call(staff, "get", "config/"), HTTPStatus.INTERNAL_SERVER_ERROR, "error")
    assert "secret" not in json.dumps(body)
    assert body["request_id"] in body["detail"]


def test_the_schema_and_its_explorer_are_for_those_signed_in(staff: Client) -> None:
    problem(Client().get("/api/schema/"), HTTPStatus.UNAUTHORIZED, "not_authenticated")
    assert "/accounts/login/" in Client().get("/api/docs/")["location"]
    assert b"/api/v1/models/" in staff.get("/api/schema/").content
    page = staff.get("/api/docs/")
    assert "unsafe" not in page["content-security-policy"]
    assert "<style" not in page.content.decode()
    script = staff.get(
        page.content.decode().rsplit('<script src="', 1)[1].split('"', 1)[0].replace("&amp;", "&")
    )
    assert "SwaggerUIBundle" in script.content.decode()
