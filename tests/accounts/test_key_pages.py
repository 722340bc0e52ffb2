"""Keys on their page, through REST and in the admin site, for everybody who may and may not."""

import json
import re
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts import key_actions
from accounts.key_rights import KeyRights
from accounts.models import ApiKey, AuditEntry, Membership, Team, User
from tests.serving import serve

pytestmark = pytest.mark.django_db

JSON = "application/json"


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", first_name="Ada")


@pytest.fixture
def eve() -> User:
    return User.objects.create_user("eve")


@pytest.fixture
def boss() -> User:
    return User.objects.create_user("boss", is_staff=True)


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def made(user: User, name: str = "laptop", **rights: Any) -> tuple[ApiKey, str]:
    return key_actions.create_api_key(user=user, name=name, by=user, rights=KeyRights(**rights))


def call(client: Client, method: str, path: str, body: object = None, key: str = "") -> Any:
    data = {} if method == "get" else {"data": json.dumps(body or {}), "content_type": JSON}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return getattr(client, method)(f"/api/v1/{path}", **data, headers=headers)


# The page ----------------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once(ada):
    client = signed_in(ada)
    fields = {"name": "ci", "scopes": ["inference", "read"], "ends": "30", "priority": "batch"}

    answer = client.post("/settings/keys/new/", fields)

    assert answer.status_code == HTTPStatus.CREATED
    assert "no-store" in answer["cache-control"]
    found = re.search(r"data-new-key>(sk-[\w-]+)<", answer.content.decode())
    assert found is not None
    key = ApiKey.objects.get(digest=ApiKey.digest_of(found[1]))
    assert (key.user, key.name, key.scopes, key.priority) == (ada, "ci", ["inference", "read"], "batch")
    assert key.expires_at is not None
    assert timedelta(days=29) < key.expires_at - timezone.now() <= timedelta(days=30)
    page = client.get("/settings/keys/").content.decode()
    assert key.prefix in page
    assert found[1] not in page
    assert "never used" in page


def test_what_is_wrong_stands_at_its_field(ada):
    serve("http://127.0.0.1:9", "key", slug="fake")
    team = Team.objects.create(name="Team")
    Membership.objects.create(team=team, user=ada, role=Membership.Role.ADMIN)
    client = signed_in(ada)
    good = {"name": "ci", "scopes": ["inference"], "ends": "", "priority": "interactive", "models": ["fake"]}
    yesterday = (timezone.now() - timedelta(days=2)).date().isoformat()
    for change, words in (
        ({"name": ""}, "This field is required"),
        ({"scopes": []}, "This field is required"),
        ({"scopes": ["all"]}, "not one of the available"),
        ({"models": ["other"]}, "not one of the available"),
        ({"ends": "date"}, "Say its last day"),
        ({"ends": "date", "date": yesterday}, "expired already"),
        ({"ends": "date", "date": "9999-12-31"}, "Nothing comes after this day"),
        ({"team": "999"}, "not one of the available"),
    ):
        answer = client.post("/settings/keys/new/", good | change)
        assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY, change
        assert words in answer.content.decode(), change
    assert not ApiKey.objects.exists()

    day = (timezone.now() + timedelta(days=3)).date()
    answer = client.post(
        "/settings/keys/new/", good | {"ends": "date", "date": day.isoformat(), "team": team.pk}
    )
    assert answer.status_code == HTTPStatus.CREATED
    key = ApiKey.objects.get()
    assert (key.team, key.model_slugs) == (team, ["fake"])
    assert key.expires_at is not None
    assert key.expires_at.date() == day + timedelta(days=1)


def test_keys_are_renamed_and_revoked_by_their_owner_only(ada, eve):
    key, secret = made(ada)

    for path, fields in ((f"{key.pk}/rename/", {"name": "mine"}), (f"{key.pk}/revoke/", {})):
        assert signed_in(eve).post(f"/settings/keys/{path}", fields).status_code == HTTPStatus.NOT_FOUND
    assert ApiKey.objects.usable().get().name == "laptop"

    client = signed_in(ada)
    client.post(f"/settings/keys/{key.pk}/rename/", {"name": "mine"})
    assert "mine" in client.get("/settings/keys/").content.decode()
    client.post(f"/settings/keys/{key.pk}/revoke/")
    page = client.get("/settings/keys/").content.decode()
    assert "No key in force" in page
    assert "1 that has ended" in page
    assert call(Client(), "get", "models/", key=secret).status_code == HTTPStatus.UNAUTHORIZED


def test_a_page_says_how_each_key_stands(ada):
    team = Team.objects.create(name="Team")
    membership = Membership.objects.create(team=team, user=ada, role=Membership.Role.OWNER)
    made(ada, "soon", expires_at=timezone.now() + timedelta(days=3))
    expired, _ = made(ada, "past")
    ApiKey.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - timedelta(days=1))
    made(ada, "teams", team=team)
    membership.delete()

    page = signed_in(ada).get("/settings/keys/").content.decode()

    for words in ("ends soon", "expired", "ended with its owner", "team Team"):
        assert words in page, words


def test_managers_see_and_end_their_teams_keys(ada, eve, boss):
    team = Team.objects.create(name="Team")
    Membership.objects.create(team=team, user=ada, role=Membership.Role.ADMIN)
    member = Membership.objects.create(team=team, user=eve, role=Membership.Role.ADMIN)
    key, _ = made(eve, "of the team", team=team)
    made(eve, "her own")

    page = signed_in(ada).get("/settings/keys/").content.decode()
    assert "of the team" in page
    assert "her own" not in page
    # Staff see everybody's keys in the admin site, not among their own.
    assert "of the team" not in signed_in(boss).get("/settings/keys/").content.decode()
    assert "of the team" in signed_in(boss).get(f"/settings/keys/?team={team.pk}").content.decode()
    Membership.objects.filter(pk=member.pk).update(role=Membership.Role.MEMBER)
    assert signed_in(eve).get(f"/settings/keys/?team={team.pk}").status_code == HTTPStatus.NOT_FOUND
    assert signed_in(ada).get("/settings/keys/?team=x").status_code == HTTPStatus.NOT_FOUND
    assert signed_in(ada).post(f"/settings/keys/{key.pk}/revoke/").status_code == HTTPStatus.FOUND
    assert not ApiKey.objects.usable().filter(pk=key.pk).exists()


# REST --------------------------------------------------------------------------------------------------------------


def test_rest_makes_lists_renames_and_revokes(ada):
    client = signed_in(ada)

    answer = call(client, "post", "keys/", {"name": "ci", "scopes": ["read"], "priority": "batch"})

    assert answer.status_code == HTTPStatus.CREATED
    assert answer["cache-control"] == "no-store"
    body = answer.json()
    assert ApiKey.objects.get(digest=ApiKey.digest_of(body["key"])).pk.hex == body["id"].replace("-", "")
    [listed] = call(client, "get", "keys/").json()["results"]
    assert listed == {name: value for name, value in body.items() if name != "key"}
    path = f"keys/{body['id']}/"
    assert call(client, "patch", path, {"name": "mine"}).json()["name"] == "mine"
    assert call(client, "patch", path, {"scopes": ["write"]}).status_code == HTTPStatus.BAD_REQUEST
    assert call(client, "delete", path).status_code == HTTPStatus.NO_CONTENT
    assert call(client, "delete", path).status_code == HTTPStatus.NO_CONTENT
    assert call(client, "get", path).json()["revoked_at"] is not None
    assert call(client, "get", "keys/?usable=true").json()["results"] == []
    assert call(client, "get", "keys/?usable=perhaps").status_code == HTTPStatus.BAD_REQUEST
    verbs = set(AuditEntry.objects.values_list("verb", flat=True))
    assert {"apikey.create", "apikey.rename", "apikey.revoke"} <= verbs


def test_others_keys_do_not_exist_over_rest(ada, eve, boss):
    key, _ = made(ada)

    for method in ("get", "patch", "delete"):
        assert call(signed_in(eve), method, f"keys/{key.pk}/").status_code == HTTPStatus.NOT_FOUND
    assert call(signed_in(eve), "get", "keys/").json()["results"] == []
    assert call(signed_in(boss), "get", f"keys/{key.pk}/").json()["user"] == "ada"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["all"]}, "scopes.0"),
        ({"name": "x", "scopes": "read"}, "scopes"),
        ({"name": "x", "models": ["nowhere"]}, "model_slugs"),
        ({"name": "x", "team": "Hidden"}, "team"),
        ({"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "expires": 3}, "expires"),
        ({"name": "a\x00b"}, "name"),
    ],
)
def test_rest_refuses_in_words(ada, body, param):
    Team.objects.create(name="Hidden")

    answer = call(signed_in(ada), "post", "keys/", body)

    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert answer.json()["param"].split(".")[0] == param.split(".")[0]
    assert not ApiKey.objects.exists()


def test_a_key_makes_no_stronger_one_over_rest(ada):
    _, key = made(ada, scopes=("write",), priority="batch")
    asked = {"name": "x", "scopes": ["write"], "priority": "batch"}

    assert (
        call(Client(), "post", "keys/", asked | {"scopes": ["read"]}, key).status_code == HTTPStatus.FORBIDDEN
    )
    assert (
        call(Client(), "post", "keys/", asked | {"priority": "interactive"}, key).status_code
        == HTTPStatus.FORBIDDEN
    )
    assert call(Client(), "post", "keys/", asked, key).status_code == HTTPStatus.CREATED


# The admin site ----------------------------------------------------------------------------------------------------


def test_the_admin_site_revokes(ada, boss):
    key, _ = made(ada)
    action = {"action": "revoke", "_selected_action": [str(key.pk)]}

    assert signed_in(ada).post("/admin/accounts/apikey/", action).status_code != HTTPStatus.OK
    assert ApiKey.objects.usable().exists()
    signed_in(boss).post("/admin/accounts/apikey/", action)

    assert not ApiKey.objects.usable().exists()
    assert AuditEntry.objects.get(verb="apikey.revoke").by == boss
