"""The hub and the remedies over REST; adding, removing and mending models on the command line."""

import json
from http import HTTPStatus
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from accounts.models import AuditEntry, User
from llamaproj import env
from llamaproj.errors import InvalidInput
from models_admin import tasks
from models_admin.engine.diagnosis import Cause
from models_admin.external import tasks as external_tasks
from models_admin.models import Instance, ModelFile, Node, ServedModel
from models_admin.nodes import actions as node_actions
from models_admin.states import InstanceState as S
from tests.hub_server import HubServer

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nobody_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "wake", lambda name: None)
    monkeypatch.setattr(external_tasks, "check_soon", lambda pk: None)


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(User.objects.create_user("boss", is_staff=True))
    return client


@pytest.fixture
def failed(served: ServedModel) -> Instance:
    ServedModel.objects.update(extra_flags=["--mlock"], enabled=True, desired_replicas=1)
    return Instance.objects.create(
        served=served, node=served.file.node, state=S.FAILED, cause=Cause.PORT_IN_USE, reason="Taken."
    )


def call(client: Client, method: str, path: str, body: object = None) -> Any:
    data = {"data": json.dumps(body), "content_type": "application/json"} if body is not None else {}
    return getattr(client, method)(f"/api/v1/{path}", **data)


def test_a_hub_is_searched_and_looked_into(
    staff: Client, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    Node.objects.update(memory_bytes=2**34, last_seen=timezone.now())
    with HubServer() as hub:
        monkeypatch.setattr(env, "HF_ENDPOINT", hub.endpoint)
        hub.put("owner/Tiny-GGUF", "Tiny-Q4_0.gguf", b"GGUF" * 100)

        (found,) = call(staff, "get", "hub/search/?q=tiny").json()
        assert found["name"] == "owner/Tiny-GGUF"
        looked = call(staff, "get", "hub/repository/?name=owner/Tiny-GGUF").json()

    (offer,) = looked["models"]
    assert (offer["path"], offer["label"], offer["size_bytes"]) == ("Tiny-Q4_0.gguf", "Q4_0", 400)
    assert [(one["node"], one["verdict"]) for one in offer["suits"]] == [(node.name, "fits")]


def test_a_hub_that_is_away_or_asked_nonsense_says_so(staff: Client, node: Node) -> None:
    away = call(staff, "get", "hub/search/?q=tiny")
    assert (away.status_code, away.json()["code"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "hub_unreachable")
    for query in ("search/", "search/?q=%00", "repository/?name=nonsense"):
        assert call(staff, "get", f"hub/{query}").status_code == HTTPStatus.BAD_REQUEST, query


def test_remedies_are_listed_with_their_replicas_and_applied(staff: Client, failed: Instance) -> None:
    (trouble,) = call(staff, "get", "models/fake-model/remedies/").json()
    assert (trouble["cause"], trouble["instances"]) == (Cause.PORT_IN_USE, [str(failed.pk)])
    assert [one["code"] for one in trouble["remedies"]] == ["again"]

    applied = call(staff, "post", "models/fake-model/remedies/", {"code": "again"})

    assert applied.status_code == HTTPStatus.OK
    assert AuditEntry.objects.filter(verb="model.remedy").exists()
    again = call(staff, "post", "models/fake-model/remedies/", {"code": "nonsense"})
    assert again.status_code == HTTPStatus.CONFLICT


def test_members_see_no_remedies(client: Client, failed: Instance) -> None:
    client.force_login(User.objects.create_user("member"))
    for method in ("get", "post"):
        refused = call(client, method, "models/fake-model/remedies/", {} if method == "post" else None)
        assert refused.status_code == HTTPStatus.FORBIDDEN


def test_a_second_server_of_the_same_name_or_address_is_a_conflict(staff: Client) -> None:
    body = {"name": "Box", "base_url": "http://127.0.0.1:9/v1"}
    assert call(staff, "post", "external-servers/", body).status_code == HTTPStatus.CREATED
    for same in (body, body | {"name": "Other"}, body | {"base_url": "http://127.0.0.1:8/v1"}):
        refused = call(staff, "post", "external-servers/", same)
        assert refused.status_code == HTTPStatus.CONFLICT, refused.content


def test_no_memory_limit_lies_below_nothing(staff: Client, node: Node) -> None:
    with pytest.raises(InvalidInput):
        node_actions.change(node, by=None, memory_limit_bytes=-1)
    form = {"labels": "", "accepts_replicas": "on", "memory_limit_bytes": "-1"}
    answer = staff.post(f"/admin/models_admin/node/{node.pk}/change/", form)
    assert answer.status_code == HTTPStatus.OK
    assert "memory_limit_bytes" in answer.context["adminform"].errors


def test_models_are_added_and_removed_on_the_command_line(
    served: ServedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ModelFile.objects.get()
    call_command("models", "add", file.path, "--slug", "second", "--node", file.node.name)
    assert "models start second" in capsys.readouterr().out
    assert ServedModel.objects.get(slug="second").file == file
    with pytest.raises(CommandError, match="already"):
        call_command("models", "add", file.path, "--slug", "second", "--node", file.node.name)
    with pytest.raises(CommandError, match="no file"):
        call_command("models", "add", "/nowhere.gguf")

    call_command("models", "remove", "second", verbosity=0)
    assert not ServedModel.objects.filter(slug="second").exists()
    ServedModel.objects.update(desired_replicas=1)
    with pytest.raises(CommandError, match="stop it first"):
        call_command("models", "remove", "fake-model")


def test_remedies_are_shown_and_applied_on_the_command_line(
    failed: Instance, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("models", "remedies", "fake-model")
    assert "again: Start again." in capsys.readouterr().out
    call_command("models", "remedies", "fake-model", "--apply", "again")
    assert AuditEntry.objects.filter(verb="model.remedy").exists()
    Instance.objects.all().delete()
    call_command("models", "remedies", "fake-model")
    assert "Nothing" in capsys.readouterr().out
