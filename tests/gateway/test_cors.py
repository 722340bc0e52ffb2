"""Pages of other origins at the door: those that CORS_ALLOWED_ORIGINS names, and the others."""

from collections.abc import AsyncIterator

import orjson
import pytest
from channels.db import database_sync_to_async

from accounts import key_actions
from accounts.models import User
from tests.fake_engine import FakeEngine
from tests.gateway.program import CHAT, Connection, Program, Response, payloads
from tests.serving import gate_left_in_order, serve

pytestmark = pytest.mark.django_db(transaction=True)

in_db = database_sync_to_async
OURS = "https://app.example.org"
OTHERS = (
    "https://evil.example.org",
    "http://app.example.org",
    f"{OURS}.evil.org",
    f"{OURS}:8443",
    "null",
    "*",
)
ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(autouse=True)
def allowed(settings) -> None:
    settings.CORS_ALLOWED_ORIGINS = [OURS]


@pytest.fixture
async def program() -> AsyncIterator[Program]:
    def make(engine: FakeEngine) -> str:
        serve(engine.base_url, engine.api_key)
        return key_actions.create_api_key(user=User.objects.create_user("ada"), name="test", by=None)[1]

    async with FakeEngine() as engine, gate_left_in_order():
        yield Program(await in_db(make)(engine))


async def preflight(origin: str, path: str, method: str = "POST") -> Response:
    asked = {"access_control_request_method": method, "access_control_request_headers": "authorization,x-y"}
    return await Connection("OPTIONS", path, origin=origin, **asked).response()


def allows(response: Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize(("path", "method"), [(CHAT, "POST"), ("/v1/models", "GET"), ("/tokenize", "POST")])
async def test_a_page_of_ours_may_ask_before_it_has_a_key(path, method):
    response = await preflight(OURS, path, method)

    assert response.status_code in {200, 204}
    found = allows(response)
    assert found["access-control-allow-origin"] == OURS
    assert method in found["access-control-allow-methods"]
    # A star doesn't stand for this one.
    assert "authorization" in found["access-control-allow-headers"]
    assert "*" in found["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in found
    assert "origin" in response["vary"].lower()


@pytest.mark.parametrize("origin", OTHERS)
async def test_another_page_is_allowed_nothing(program, origin):
    assert allows(await preflight(origin, CHAT)) == {}
    response = await program.open(orjson.dumps(ASK), origin=origin).response()
    assert allows(response) == {}
    # No cache may give one page's answer to another.
    assert "origin" in response["vary"].lower()


async def test_a_page_of_ours_reads_answers_streams_and_errors(program):
    whole = await program.open(orjson.dumps(ASK), origin=OURS).response()
    streamed = await program.stream(ASK, origin=OURS).response()
    wrong = await program.open(b"{", origin=OURS).response()
    nobody = await Connection("POST", CHAT, b"{}", origin=OURS).response()
    nowhere = await Connection("GET", "/v1/nothing", origin=OURS, **program.headers).response()

    assert payloads(streamed.content)[-1] == "[DONE]"
    assert [one.status_code for one in (whole, streamed, wrong, nobody, nowhere)] == [200, 200, 400, 401, 404]
    for response in (whole, streamed, wrong, nobody, nowhere):
        found = allows(response)
        assert found["access-control-allow-origin"] == OURS
        shown = found["access-control-expose-headers"]
        assert all(name in shown for name in ("x-request-id", "retry-after", "x-ratelimit-remaining-tokens"))
        assert "access-control-allow-credentials" not in found


async def test_without_the_setting_no_page_elsewhere_may_anything(settings):
    settings.CORS_ALLOWED_ORIGINS = []

    assert allows(await preflight(OURS, CHAT)) == {}


def test_the_rest_api_allows_the_same_pages_and_nothing_else_does(client):
    asked = {"origin": OURS, "access-control-request-method": "GET"}

    assert client.options("/api/v1/models/", headers=asked)["access-control-allow-origin"] == OURS
    for origin in OTHERS:
        response = client.options("/api/v1/models/", headers=asked | {"origin": origin})
        assert "access-control-allow-origin" not in response
    assert "access-control-allow-origin" not in client.get("/accounts/login/", headers={"origin": OURS})
