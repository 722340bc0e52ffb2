import json
from http import HTTPStatus
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.test import Client

from accounts import version
from accounts.models import AuditEntry, Membership, Team, User
from accounts.people import actions
from llamaproj.errors import Conflict

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def renewed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(version, "renew", lambda: names.append("rights"))
    return names


@pytest.fixture
def boss() -> User:
    return User.objects.create_user("boss", is_staff=True, email="boss@example.org")


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", email="ada@example.org", password=PASSWORD)


def of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def call(user: User, method: str, path: str, body: object = None) -> Any:
    data = {"data": json.dumps(body), "content_type": "application/json"} if body is not None else {}
    return getattr(of(user), method)(f"/api/v1/{path}", **data)


def refused(response: Any, status: HTTPStatus, param: str | None = None) -> str:
    assert response.status_code == status, response.content
    assert response.json()["param"] == param
    return str(response.json()["detail"])


def test_everybody_reads_themselves_and_changes_their_name(ada: User, renewed: list[str]) -> None:
    Membership.objects.create(user=ada, team=Team.objects.create(name="Lab"), role="admin")

    read = call(ada, "get", "me/").json()
    assert (read["username"], read["is_staff"]) == ("ada", False)
    assert read["teams"] == [{"team": "Lab", "role": "admin"}]
    assert not any("pass" in name for name in read)

    assert call(ada, "patch", "me/", {"first_name": "Ada"}).json()["first_name"] == "Ada"
    assert call(ada, "patch", "me/", read | {"first_name": "Ada"}).status_code == HTTPStatus.OK
    assert [entry.verb for entry in AuditEntry.objects.all()] == ["user.change"]
    assert renewed


def test_nobody_makes_themselves_an_administrator(ada: User) -> None:
    call(ada, "patch", "me/", {"is_staff": True, "username": "root", "email": "boss@example.org"})

    ada.refresh_from_db()
    assert (ada.is_staff, ada.username, ada.email) == (False, "ada", "ada@example.org")
    assert refused(call(ada, "patch", "me/", {"password": PASSWORD}), HTTPStatus.BAD_REQUEST, "password")


def test_members_know_nothing_of_others(ada: User, boss: User) -> None:
    for method, path in (("get", "users/"), ("get", f"users/{boss.pk}/"), ("delete", f"users/{boss.pk}/")):
        refused(call(ada, method, path), HTTPStatus.FORBIDDEN)
    refused(call(ada, "post", "users/", {"username": "eve"}), HTTPStatus.FORBIDDEN)


def test_administrators_add_people_who_can_sign_in(boss: User) -> None:
    body = {"username": "eve", "email": "eve@example.org", "password": PASSWORD, "is_staff": True}

    added = call(boss, "post", "users/", body)

    assert added.status_code == HTTPStatus.CREATED
    assert "password" not in added.json()
    assert Client().login(username="eve", password=PASSWORD)
    assert AuditEntry.objects.get(verb="user.create").by == boss
    assert PASSWORD not in str(AuditEntry.objects.values())
    refused(call(boss, "post", "users/", body | {"email": ""}), HTTPStatus.CONFLICT, "username")
    refused(call(boss, "post", "users/", body | {"username": "EVE"}), HTTPStatus.CONFLICT, "username")
    refused(call(boss, "post", "users/", body | {"username": "e2"}), HTTPStatus.CONFLICT, "email")


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("username", {}),
        ("username", {"username": "a b"}),
        ("username", {"username": "a\0"}),
        ("username", {"username": 5}),
        ("email", {"username": "a", "email": "nowhere"}),
        ("password", {"username": "a", "password": "short"}),
        ("is_superuser", {"username": "a", "is_superuser": True}),
        ("is_staff", {"username": "a", "is_staff": "yes"}),
    ],
)
def test_a_person_who_can_not_be_added(boss: User, param: str, body: dict[str, Any]) -> None:
    refused(call(boss, "post", "users/", body), HTTPStatus.BAD_REQUEST, param)
    assert User.objects.count() == 1


def test_a_person_without_a_password_does_not_sign_in(boss: User) -> None:
    call(boss, "post", "users/", {"username": "eve"})

    assert not User.objects.get(username="eve").has_usable_password()
    call(boss, "patch", f"users/{User.objects.get(username='eve').pk}/", {"password": PASSWORD})
    assert Client().login(username="eve", password=PASSWORD)


def test_a_new_password_and_deactivation_end_sessions(boss: User, ada: User) -> None:
    session = of(ada)
    call(boss, "patch", f"users/{ada.pk}/", {"password": PASSWORD + "!"})
    assert session.get("/api/v1/me/").status_code == HTTPStatus.UNAUTHORIZED

    ada.refresh_from_db()
    session = of(ada)
    call(boss, "patch", f"users/{ada.pk}/", {"is_active": False})
    assert session.get("/api/v1/me/").status_code == HTTPStatus.UNAUTHORIZED
    assert [entry.detail["fields"] for entry in AuditEntry.objects.order_by("pk")] == [
        ["password"],
        ["is_active"],
    ]


def test_nothing_is_written_where_nothing_changes(boss: User, ada: User, renewed: list[str]) -> None:
    read = call(boss, "get", f"users/{ada.pk}/").json()

    assert call(boss, "patch", f"users/{ada.pk}/", read).json() == read
    assert not AuditEntry.objects.exists()
    assert not renewed


def test_another_address_is_not_proven_by_the_old_one(boss: User, ada: User) -> None:
    EmailAddress.objects.create(user=ada, email="ada@example.org", verified=True, primary=True)

    call(boss, "patch", f"users/{ada.pk}/", {"email": "lovelace@example.org"})

    assert not EmailAddress.objects.exists()


def test_nobody_shuts_themselves_out(boss: User) -> None:
    User.objects.create_user("second", is_staff=True)

    for body in ({"is_active": False}, {"is_staff": False}):
        refused(call(boss, "patch", f"users/{boss.pk}/", body), HTTPStatus.CONFLICT)
    refused(call(boss, "delete", f"users/{boss.pk}/"), HTTPStatus.CONFLICT)
    boss.refresh_from_db()
    assert boss.is_active
    assert boss.is_staff


def test_the_last_administrator_stays_one(boss: User, ada: User) -> None:
    with pytest.raises(Conflict, match="last administrator"):
        actions.change(boss, by=None, is_staff=False)
    with pytest.raises(Conflict, match="last administrator"):
        actions.change(boss, by=None, is_active=False)
    actions.change(ada, by=boss, is_staff=True)
    actions.change(boss, by=ada, is_active=False)

    assert list(User.objects.filter(is_staff=True, is_active=True)) == [ada]


def test_a_person_is_deactivated_before_being_removed(boss: User, ada: User) -> None:
    assert "Deactivate" in refused(call(boss, "delete", f"users/{ada.pk}/"), HTTPStatus.CONFLICT)

    call(boss, "patch", f"users/{ada.pk}/", {"is_active": False})
    assert call(boss, "delete", f"users/{ada.pk}/").status_code == HTTPStatus.NO_CONTENT
    refused(call(boss, "delete", f"users/{ada.pk}/"), HTTPStatus.NOT_FOUND)
    assert AuditEntry.objects.get(verb="user.delete").target == "ada"


def test_people_are_filtered_searched_and_ordered(boss: User, ada: User) -> None:
    Team.objects.create(name="Lab").members.add(ada)
    User.objects.create_user("gone", is_active=False)

    def names(query: str) -> list[str]:
        return [one["username"] for one in call(boss, "get", f"users/?{query}").json()["results"]]

    assert names("") == ["ada", "boss", "gone"]
    assert names("ordering=-username&page_size=1") == ["gone"]
    assert names("is_active=false") == ["gone"]
    assert names("is_staff=true") == ["boss"]
    assert names("team=Lab") == ["ada"]
    assert names("search=ada@") == ["ada"]


def test_an_address_that_is_not_there_is_a_problem_for_programs_and_a_page_for_people(boss: User) -> None:
    assert refused(call(boss, "get", "nothing/"), HTTPStatus.NOT_FOUND)
    assert call(boss, "get", "nothing/")["content-type"] == "application/problem+json"
    assert of(boss).get("/nothing/")["content-type"].startswith("text/html")
    assert of(boss).get("/api/v1/me").status_code == HTTPStatus.MOVED_PERMANENTLY
