"""The REST API against its own schema: whatever is sent, the answer is one that the schema promises.

`SCHEMA_EXAMPLES=200 make test ARGS=tests/test_schema.py` looks for longer.
"""

import os
import re
from http import HTTPStatus
from typing import Any
from uuid import UUID

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from django.test import Client
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException, Unsatisfiable
from schemathesis import Case
from schemathesis.checks import load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation, BaseSchema

from accounts import key_actions
from accounts.key_rights import KeyRights
from accounts.models import ApiKey, AuditEntry, Membership, Team, User
from accounts.teams import invitations
from chat import actions as chat_actions
from chat.models import Generation, Prompt
from gateway.models import Limit, Price, UsageRecord
from models_admin import tasks
from models_admin.external import tasks as external_tasks
from models_admin.hub import tasks as download_tasks
from models_admin.models import Download, ExternalServer, Instance, ModelFile, Node
from tests.hub_server import HubServer
from tests.serving import serve

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "3"))
ROOT = "/api/v1/"
# What the schema can't say: that two parameters don't go together, that a repository isn't on the hub.
REFUSED = ["400", "401", "403", "404", "409", "429"]
# And what holds for the moment only: that there is no worker, or the hub is away.
UNAVAILABLE = "503"
# Those who have nothing yet come here.
OPEN = "auth/"

Things = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def nobody_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows change here, and no process, download or server."""
    monkeypatch.setattr(tasks, "wake", lambda name: None)
    monkeypatch.setattr(tasks, "ask_scan", lambda name: None)
    monkeypatch.setattr(external_tasks, "check_soon", lambda pk: None)
    monkeypatch.setattr(download_tasks, "send", lambda *_: None)


@pytest.fixture(autouse=True)
def one_connection() -> Any:
    """As Django's own client has it: a request doesn't close the connection of the test's transaction."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    with HubServer() as server:
        monkeypatch.setattr("llamaproj.env.HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def things(db: None) -> Things:
    """One of everything, by the path under which it is; what people own is ada's."""
    ada, boss = User.objects.create_user("ada"), User.objects.create_user("boss", is_staff=True)
    served = serve("http://127.0.0.1:9", "key")
    node = Node.objects.get()
    Node.objects.update(last_seen=timezone.now())
    begun = chat_actions.begin(owner=ada, text="Hello", served=served)
    lab = Team.objects.create(name="Lab")
    Membership.objects.create(team=lab, user=ada, role=Membership.Role.ADMIN)
    Price.objects.create(served=served, prompt_per_million=1, completion_per_million=2)
    record = UsageRecord.objects.create(
        user=ada, served=served, model_slug="fake", door="chat", finish="stop"
    )
    file = {"path": "m.gguf", "target": "a/b/m.gguf", "size_bytes": 1, "sha256": "", "git_sha1": ""}
    other_key = key_actions.create_api_key(user=ada, name="another", by=ada)[0]
    return {
        "audit": {"id": AuditEntry.objects.first().pk},
        "conversations": {"id": begun.pk},
        "downloads": {"id": Download.objects.create(node=node, repository="a/b", files=[file]).pk},
        "external-servers": {"id": ExternalServer.objects.create(name="E", base_url="http://h:9/v1").pk},
        "generations": {"id": Generation.objects.get().pk},
        "instances": {"id": Instance.objects.get().pk},
        "invitations": {"id": invitations.invite(by=boss, team=lab)[0].pk},
        "keys": {"id": other_key.pk},
        "limits": {"id": Limit.objects.create(user=ada, requests_per_minute=60).pk},
        "model-files": {"id": ModelFile.objects.get().pk},
        "models": {"slug": "fake"},
        "nodes": {"name": node.name},
        "prices": {"slug": "fake"},
        "prompts": {"id": Prompt.objects.create(owner=ada, title="P", text="T").pk},
        "teams": {"id": lab.pk, "username": "ada"},
        "usage": {"id": record.pk},
        "users": {"id": ada.pk},
    }


def api() -> BaseSchema:
    load_all_checks()
    checks = {
        "positive_data_acceptance": {"expected-statuses": ["2xx", *REFUSED, UNAVAILABLE]},
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", UNAVAILABLE]},
        # These ask once more for each answer; what they look for is tested below.
        "ignored_auth": {"enabled": False},
        "unsupported_method": {"enabled": False},
    }
    config = SchemathesisConfig.from_dict({"checks": checks})
    schema = schemathesis.openapi.from_dict(SchemaGenerator().get_schema(public=True), config=config)
    schema.app = get_wsgi_application()
    return schema


def key_of(user: User) -> str:
    rights = KeyRights(scopes=tuple(ApiKey.Scope.values))
    return key_actions.create_api_key(user=user, name="schemathesis", by=user, rights=rights)[1]


def there(path: str, things: Things) -> dict[str, Any]:
    """What the path's parameters may stand for."""
    found = things.get(path.removeprefix(ROOT).split("/")[0], {})
    return {name: str(one) if isinstance(one, UUID) else one for name, one in found.items()}


@pytest.mark.parametrize("who", ["administrator", "member", "nobody"])
def test_whatever_is_asked_the_answer_is_as_the_schema_promises(who: str, things: Things) -> None:
    names = {"administrator": "boss", "member": "ada"}
    headers = (
        {"Authorization": f"Bearer {key_of(User.objects.get(username=names[who]))}"} if who in names else {}
    )
    found: dict[str, str] = {}
    for operation in (result.ok() for result in api().get_all_operations()):
        is_open = operation.path.startswith(ROOT + OPEN)
        # Whoever is nobody is turned away before anything is read.
        for mode in GenerationMode if headers or is_open else [GenerationMode.POSITIVE]:
            try:
                ask(operation, mode, headers, there(operation.path, things))
            except Unsatisfiable:
                pass  # nothing about it can be wrong
            except (AssertionError, HypothesisException) as error:
                found[f"{operation.label}, {mode.value}"] = str(error)
    assert not found, "\n\n".join(f"{label}:\n{text}" for label, text in found.items())


def ask(
    operation: APIOperation, mode: GenerationMode, headers: dict[str, str], known: dict[str, Any]
) -> None:
    """Send what the schema allows, or what it doesn't; of things that are there, unless the path is what is wrong."""
    is_open = operation.path.startswith(ROOT + OPEN)

    @seed(20261121)
    @settings(
        max_examples=EXAMPLES if headers or is_open else 1,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Case) -> None:
        if _has_good_path(case):
            for name in case.path_parameters.keys() & known.keys():
                case.path_parameters[name] = known[name]
        # What one example does, the next doesn't find.
        with transaction.atomic():
            answer = case.call(headers=headers)
            if headers or is_open:
                try:
                    case.validate_response(answer, headers=headers)
                except FailureGroup as group:
                    sent = f"{answer.request.url} {(answer.request.body or b'')[:300]!r}"
                    said = "\n".join(str(failure)[:1000] for failure in group.exceptions)
                    raise AssertionError(f"{sent}\n{said}") from None
                if not is_open:
                    assert answer.status_code != HTTPStatus.UNAUTHORIZED
                _ask_again(case, answer.status_code, headers)
            else:
                assert answer.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND}, (
                    answer.status_code
                )
                assert answer.headers["content-type"] == ["application/problem+json"]
            transaction.set_rollback(True)

    one()


def _ask_again(case: Case, status: int, headers: dict[str, str]) -> None:
    """A write is the same twice, or says that it can't be done any more."""
    if case.method.upper() != "GET" and status < HTTPStatus.BAD_REQUEST:
        again = case.call(headers=headers)
        assert again.status_code in {status, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}, again.status_code


def test_methods_that_a_resource_has_not_are_refused(things: Things, client: Client) -> None:
    client.force_login(User.objects.get(username="boss"))
    for path, methods in SchemaGenerator().get_schema(public=True)["paths"].items():
        known = there(path, things)
        url = re.sub(r"{(\w+)}", lambda match, known=known: str(known.get(match[1], 0)), path)
        for method in {"get", "post", "put", "patch", "delete"} - methods.keys():
            answer = getattr(client, method)(url)
            assert answer.status_code in {HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_FOUND}, (method, path)
            if answer.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
                assert method.upper() not in answer["allow"]
                assert answer.json()["code"] == "method_not_allowed"


def _has_good_path(case: Case) -> bool:
    part = case.meta.components.get(ParameterLocation.PATH) if case.meta else None
    return part is None or part.mode.is_positive
