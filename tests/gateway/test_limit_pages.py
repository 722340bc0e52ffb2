"""Limits on their pages, over REST and in the admin site."""

import json
from http import HTTPStatus
from typing import Any

import pytest
from django.test import Client

from accounts import key_actions, version
from accounts.key_rights import KeyRights
from accounts.models import AuditEntry, Membership, Team, User
from gateway.admission import Use
from gateway.limits import use
from gateway.models import Limit, UsageRecord
from tests.serving import serve

pytestmark = pytest.mark.django_db

EMPTY = dict.fromkeys(
    (
        "requests_per_minute",
        "prompt_tokens_per_minute",
        "completion_tokens_per_minute",
        "prompt_tokens_per_day",
        "completion_tokens_per_day",
        "concurrent_requests",
        "context_tokens",
    ),
    "",
)


@pytest.fixture(autouse=True)
def renewed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(version, "renew", lambda *_: said.append("rights"))
    return said


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(User.objects.create_user("boss", is_staff=True))
    return client


def member(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def call(client: Client, method: str, path: str, body: object = None) -> Any:
    data = {} if method == "get" else {"data": json.dumps(body or {}), "content_type": "application/json"}
    return getattr(client, method)(f"/api/v1/{path}", **data)


def test_a_limit_is_set_changed_and_removed_on_its_page(staff, ada, renewed):
    added = staff.post(
        "/settings/limits/all/add/", EMPTY | {"subject": f"user:{ada.pk}", "requests_per_minute": "60"}
    )
    assert added.status_code == HTTPStatus.FOUND
    limit = Limit.objects.get(user=ada)
    assert limit.requests_per_minute == 60
    assert "60" in staff.get("/settings/limits/all/").content.decode()
    changed = staff.post(f"/settings/limits/all/{limit.pk}/", EMPTY | {"concurrent_requests": "2"})
    assert changed.status_code == HTTPStatus.FOUND
    limit.refresh_from_db()
    assert (limit.requests_per_minute, limit.concurrent_requests) == (None, 2)
    staff.post(f"/settings/limits/all/{limit.pk}/", EMPTY | {"concurrent_requests": "2"})
    staff.post(f"/settings/limits/all/{limit.pk}/remove/")

    assert not Limit.objects.exists()
    assert len(renewed) == 3
    verbs = list(AuditEntry.objects.order_by("pk").values_list("verb", flat=True))
    assert verbs == ["limit.add", "limit.change", "limit.remove"]


def test_each_kind_of_subject_can_be_chosen_once(staff, ada):
    team = Team.objects.create(name="Team")
    served = serve("http://127.0.0.1:9", "key", slug="fake")
    key, _ = key_actions.create_api_key(user=ada, name="k", by=None)
    everything = ["everybody", f"user:{ada.pk}", f"team:{team.pk}", f"model:{served.pk}", f"key:{key.pk}"]
    for subject in everything:
        assert (
            staff.post("/settings/limits/all/add/", EMPTY | {"subject": subject}).status_code
            == HTTPStatus.FOUND
        )
    assert Limit.objects.count() == len(everything)
    for subject in [*everything, "user:x", "x", ""]:
        again = staff.post("/settings/limits/all/add/", EMPTY | {"subject": subject})
        assert again.status_code == HTTPStatus.UNPROCESSABLE_ENTITY, subject


@pytest.mark.parametrize("wrong", ["-1", "many", str(2**80), "1.5"])
def test_what_is_wrong_stands_at_its_field(staff, wrong):
    answer = staff.post(
        "/settings/limits/all/add/", EMPTY | {"subject": "everybody", "requests_per_minute": wrong}
    )

    assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "id_requests_per_minute_error" in answer.content.decode()
    assert not Limit.objects.exists()


def test_members_set_no_limits(ada):
    limit = Limit.objects.create(user=ada)
    client = member(ada)
    for path in ("all/", "all/add/", f"all/{limit.pk}/"):
        assert client.get(f"/settings/limits/{path}").status_code == HTTPStatus.FORBIDDEN
    assert client.post(f"/settings/limits/all/{limit.pk}/remove/").status_code == HTTPStatus.FORBIDDEN
    for method, path in (
        ("get", "limits/"),
        ("post", "limits/"),
        ("get", f"limits/{limit.pk}/"),
        ("patch", f"limits/{limit.pk}/"),
        ("delete", f"limits/{limit.pk}/"),
    ):
        assert call(client, method, path).status_code == HTTPStatus.FORBIDDEN
        assert call(Client(), method, path).status_code == HTTPStatus.UNAUTHORIZED
    assert Limit.objects.exists()


def test_rest_sets_changes_and_removes(staff, ada):
    made = call(staff, "post", "limits/", {"user": "ada", "requests_per_minute": 60})
    assert made.status_code == HTTPStatus.CREATED
    body = made.json()
    assert (body["user"], body["team"], body["requests_per_minute"]) == ("ada", None, 60)
    assert call(staff, "post", "limits/", {"user": "ada"}).status_code == HTTPStatus.CONFLICT
    assert call(staff, "post", "limits/", {}).status_code == HTTPStatus.CREATED
    assert call(staff, "post", "limits/", {}).status_code == HTTPStatus.CONFLICT
    path = f"limits/{body['id']}/"
    assert call(staff, "patch", path, {"concurrent_requests": 0}).json()["requests_per_minute"] == 60
    assert call(staff, "patch", path, {"requests_per_minute": None}).json()["requests_per_minute"] is None
    assert [one["user"] for one in call(staff, "get", "limits/?user=ada").json()["results"]] == ["ada"]
    assert call(staff, "delete", path).status_code == HTTPStatus.NO_CONTENT
    assert call(staff, "delete", path).status_code == HTTPStatus.NOT_FOUND


@pytest.mark.parametrize(
    "body",
    [
        {"user": "nobody"},
        {"user": "ada", "team": "Team"},
        {"requests_per_minute": -1},
        {"requests_per_minute": "60"},
        {"requests_per_minute": 2**80},
        {"context_tokens": 0},
        {"requests": 1},
    ],
)
def test_rest_refuses_in_words(staff, ada, body):
    Team.objects.create(name="Team")
    answer = call(staff, "post", "limits/", body)

    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert answer.json()["param"] in body
    assert not Limit.objects.exists()


def test_the_admin_site_goes_the_same_way(staff, ada, renewed):
    fields = EMPTY | {"user": ada.pk, "team": "", "api_key": "", "served": "", "requests_per_minute": "7"}
    assert staff.post("/admin/gateway/limit/add/", fields).status_code == HTTPStatus.FOUND
    limit = Limit.objects.get(user=ada)
    staff.post(f"/admin/gateway/limit/{limit.pk}/change/", EMPTY | {"requests_per_minute": "8"})
    limit.refresh_from_db()
    assert limit.requests_per_minute == 8
    staff.post(f"/admin/gateway/limit/{limit.pk}/delete/", {"post": "yes"})

    assert not Limit.objects.exists()
    assert len(renewed) == 3


@pytest.mark.parametrize("fields", [{}, {"user": "ada", "team": "Team"}])
def test_the_admin_site_says_in_words_that_a_limit_has_one_subject(staff, ada, fields, caplog):
    Limit.objects.create(requests_per_minute=9)
    known = {"ada": ada.pk, "Team": Team.objects.create(name="Team").pk}
    said = EMPTY | dict.fromkeys(("user", "team", "api_key", "served"), "") | {"requests_per_minute": "7"}
    answer = staff.post(
        "/admin/gateway/limit/add/", said | {name: known[who] for name, who in fields.items()}
    )

    errors = answer.context["adminform"].form.errors
    assert list(errors) == ["team" if fields else "__all__"]
    words = "for one person, team, key or model" if fields else "a limit for everybody"
    assert words in str(errors)
    assert Limit.objects.get().requests_per_minute == 9
    assert "database error" not in caplog.text


# One's own use -----------------------------------------------------------------------------------------------------


def test_people_see_what_binds_them_and_what_they_used(ada, monkeypatch):
    team = Team.objects.create(name="Team")
    other = Team.objects.create(name="Other")
    Membership.objects.create(team=team, user=ada, role=Membership.Role.ADMIN)
    Membership.objects.create(team=other, user=ada, role=Membership.Role.MEMBER)
    key, _ = key_actions.create_api_key(user=ada, name="ci", by=None)
    Limit.objects.create(requests_per_minute=99)
    Limit.objects.create(team=team, prompt_tokens_per_day=1000)
    Limit.objects.create(team=other, prompt_tokens_per_day=2000)
    Limit.objects.create(api_key=key, concurrent_requests=4)
    asked: list[object] = []

    def used(subjects: list[tuple[str, object]]) -> list[Use]:
        asked.extend(subjects)
        return [Use(5, 6, 7, 800, None, 3) for _ in subjects]

    monkeypatch.setattr(use, "use_of", used)

    found = call(member(ada), "get", "me/limits/").json()

    assert set(asked) == {("user", ada.pk), ("team", team.pk), ("key", key.pk)}
    said = {(one["kind"], one["amounts"][0]["name"]): one["amounts"][0] for one in found}
    assert said["self", "requests_per_minute"] == {"name": "requests_per_minute", "limit": 99, "used": 5}
    assert said["team", "prompt_tokens_per_day"]["used"] == 800
    assert said["key", "concurrent_requests"]["used"] == 3
    page = member(ada).get("/settings/limits/").content.decode()
    for words in ("Team Team", "API key ci", "Prompt tokens in a day", 'value="800"'):
        assert words in page, words
    assert "Other" not in page.split("settings-page")[1]
    Limit.objects.create(user=ada, requests_per_minute=1)
    assert call(member(ada), "get", "me/limits/").json()[0]["amounts"][0]["limit"] == 1


def test_what_is_used_up_is_said_in_words(ada, monkeypatch):
    Limit.objects.create(user=ada, requests_per_minute=5, prompt_tokens_per_minute=7, concurrent_requests=4)
    monkeypatch.setattr(use, "use_of", lambda subjects: [Use(5, 6, 0, 0, 0, 3) for _ in subjects])

    page = member(ada).get("/settings/limits/now/").content.decode()

    requests, prompts, at_a_time = page.split("data-limit=")[1:]
    assert ">used up<" in requests
    assert ">little left<" in prompts
    assert "badge" not in at_a_time


def test_use_that_nobody_knows_is_said_to_be_unknown(ada, monkeypatch):
    Limit.objects.create(requests_per_minute=99)

    def away(_: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(use, "use_of", away)

    assert call(member(ada), "get", "me/limits/").json()[0]["amounts"][0]["used"] is None
    assert "known at the moment" in member(ada).get("/settings/limits/now/").content.decode()


def test_nothing_used_yet_is_nothing(ada):
    Limit.objects.create(user=ada, requests_per_minute=5, context_tokens=4096)

    amounts = call(member(ada), "get", "me/limits/").json()[0]["amounts"]

    assert [(one["name"], one["used"]) for one in amounts] == [
        ("requests_per_minute", 0),
        ("context_tokens", None),
    ]


def test_a_day_that_no_request_has_begun_yet_is_known_from_the_records(ada):
    Limit.objects.create(user=ada, prompt_tokens_per_day=1000)
    UsageRecord.objects.create(user=ada, model_slug="m", door="api", finish="stop", prompt_tokens=70)

    [amount] = call(member(ada), "get", "me/limits/").json()[0]["amounts"]

    assert amount["used"] == 70


def test_a_key_without_read_sees_no_limits(ada):
    _, key = key_actions.create_api_key(user=ada, name="k", by=None, rights=KeyRights())

    answer = Client().get("/api/v1/me/limits/", headers={"authorization": f"Bearer {key}"})

    assert answer.status_code == HTTPStatus.FORBIDDEN
