"""What a key opens of the REST API: every URL, every scope."""

import json
from http import HTTPStatus
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from accounts import key_actions
from accounts.key_rights import KeyRights
from accounts.models import User

pytestmark = pytest.mark.django_db

_NOTHING = {"integer": "0", "uuid": "11111111-1111-1111-1111-111111111111"}
_SAFE = {"get", "head", "options"}
# Whoever comes here has no key yet.
_OPEN = ("/api/v1/auth/token/",)


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Every method of every URL of the REST API, with ids of nothing."""
    file = tmp_path_factory.mktemp("schema") / "schema.json"
    call_command("spectacular", "--format", "openapi-json", "--file", file)
    paths = json.loads(file.read_text())["paths"]
    found = [
        (method, _filled(path, said.get("parameters", [])))
        for path, methods in paths.items()
        for method, said in methods.items()
    ]
    assert len(found) > 40
    return [(method, path) for method, path in found if not path.startswith(_OPEN)]


def _filled(path: str, parameters: list[dict[str, Any]]) -> str:
    for one in (one for one in parameters if one["in"] == "path"):
        kind = one["schema"].get("format") or one["schema"]["type"]
        path = path.replace(f"{{{one['name']}}}", _NOTHING.get(kind, "nothing"))
    return path


def ask(method: str, path: str, key: str) -> Any:
    headers = {"authorization": f"Bearer {key}"}
    return Client().generic(method.upper(), path, "{}", content_type="application/json", headers=headers)


@pytest.mark.parametrize(
    ("scopes", "opens"), [(("inference",), set()), (("read",), {"read"}), (("write",), {"write"})]
)
def test_each_url_opens_for_its_scope_only(operations, scopes, opens):
    user = User.objects.create_user("boss", is_staff=True)
    _, key = key_actions.create_api_key(user=user, name="k", by=None, rights=KeyRights(scopes=scopes))
    for method, path in operations:
        needed = "read" if method in _SAFE else "write"
        if needed in opens:
            continue
        answer = ask(method, path, key)
        assert answer.status_code == HTTPStatus.FORBIDDEN, (method, path, answer.content[:200])
        assert needed in answer.json()["detail"], (method, path)


def test_a_key_with_the_scope_comes_through(operations):
    user = User.objects.create_user("boss", is_staff=True)
    rights = KeyRights(scopes=("read", "write"))
    _, key = key_actions.create_api_key(user=user, name="k", by=None, rights=rights)
    for method, path in operations:
        if method == "get":
            answer = ask(method, path, key)
            assert answer.status_code not in {HTTPStatus.FORBIDDEN, HTTPStatus.UNAUTHORIZED}, path
    assert ask("post", "/api/v1/keys/", key).status_code == HTTPStatus.BAD_REQUEST


def test_a_key_opens_no_page(client):
    user = User.objects.create_user("ada")
    _, key = key_actions.create_api_key(
        user=user, name="k", by=None, rights=KeyRights(scopes=("read", "write"))
    )
    headers = {"authorization": f"Bearer {key}"}

    for path in ("/settings/keys/", "/settings/", "/"):
        assert client.get(path, headers=headers).status_code == HTTPStatus.FOUND
