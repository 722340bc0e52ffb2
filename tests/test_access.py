"""Every address of the portal, for everybody: nobody, a stranger, the owner, a team's manager, staff; keys, too.

A new URL is named in `ROUTES` as the resolver spells it, under the least who may open it:

    PUBLIC  whoever comes             MANAGER  whoever manages the team (and staff)
    MEMBER  whoever is signed in      STAFF    administrators
    OWNER   whose it is, nobody else

What its parameters stand for is said in `things`, by what stands before them; without a name there they stand for
nothing, and 404 is an answer.
"""

import re
from collections.abc import Callable, Iterator
from http import HTTPStatus as H
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from accounts import key_actions
from accounts.key_rights import KeyRights
from accounts.models import ApiKey, Membership, Team, User
from chat import actions as chat_actions
from chat.models import Generation
from models_admin.models import Instance, ModelFile, Node
from tests.serving import serve

pytestmark = pytest.mark.django_db

PUBLIC = """
    healthz readyz join/ join/<str:token>/
    api/v1/auth/token/ api/v1/auth/token/refresh/ api/v1/auth/token/revoke/
"""
MEMBER = """
    / c/ c/new/ c/shared/ dashboard/ monitoring/ monitoring/history/ monitoring/statistics/ models/
    models/<slug:slug>/ teams/ usage/ usage/requests.csv usage/sums.csv
    prompts/ prompts/choices/ prompts/new/ prompts/<int:pk>/delete/ prompts/<int:pk>/edit/
    api/schema/ api/docs/ api/v1/health/ api/v1/me/ api/v1/metrics/ api/v1/models/ api/v1/models/<slug:slug>/
    api/v1/statistics/
    api/v1/conversations/ api/v1/keys/ api/v1/keys/<uuid:pk>/ api/v1/prompts/ api/v1/prompts/<int:pk>/
    api/v1/usage/ api/v1/usage/<uuid:pk>/ api/v1/usage/summary/ api/v1/conversations/search/ api/v1/teams/
    api/v1/invitations/ api/v1/invitations/<uuid:pk>/ api/v1/me/limits/
    settings/ settings/keys/ settings/keys/<uuid:pk>/rename/ settings/keys/<uuid:pk>/revoke/ settings/keys/new/
    settings/limits/ settings/limits/now/ settings/security/ settings/sessions/ settings/sessions/<int:pk>/end/
    settings/sessions/others/
"""
OWNER = """
    c/<uuid:pk>/ c/<uuid:pk>/delete/ c/<uuid:pk>/rename/ c/<uuid:pk>/retry/<uuid:message>/ c/<uuid:pk>/send/
    c/<uuid:pk>/stop/ c/<uuid:pk>/share/
    api/v1/conversations/<uuid:pk>/ api/v1/conversations/<uuid:pk>/export/
    api/v1/conversations/<uuid:pk>/messages/ api/v1/conversations/<uuid:pk>/share/
    api/v1/generations/<uuid:pk>/ api/v1/generations/<uuid:pk>/retry/ api/v1/generations/<uuid:pk>/stop/
"""
MANAGER = """
    teams/<int:pk>/ teams/<int:pk>/delete/ teams/<int:pk>/edit/ teams/<int:pk>/invite/ teams/<int:pk>/members/
    teams/<int:pk>/members/<int:member>/remove/ teams/<int:pk>/members/<int:member>/role/
    usage/teams/<int:pk>/ usage/teams/<int:pk>/requests.csv usage/teams/<int:pk>/sums.csv
    invitations/<uuid:invitation>/revoke/
    api/v1/teams/<int:pk>/ api/v1/teams/<int:pk>/members/ api/v1/teams/<int:pk>/members/<str:username>/
"""
STAFF = """
    metrics audit/ audit/export/ teams/invite/ usage/all/ usage/all/requests.csv usage/all/sums.csv usage/settings/
    models/<slug:slug>/edit/ models/<slug:slug>/log/<uuid:pk>/ models/<slug:slug>/remedy/<slug:code>/
    models/<slug:slug>/remove/ models/<slug:slug>/restart/ models/<slug:slug>/start/ models/<slug:slug>/stop/
    models/add/<int:pk>/ models/config/ models/downloads/ models/downloads/<uuid:pk>/cancel/
    models/downloads/<uuid:pk>/retry/ models/downloads/ask/ models/external/ models/external/<int:pk>/check/
    models/external/<int:pk>/disable/ models/external/<int:pk>/edit/ models/external/<int:pk>/enable/
    models/external/<int:pk>/remove/ models/external/<int:pk>/serve/ models/external/add/ models/external/present/
    models/nodes/ models/nodes/<int:pk>/accept/ models/nodes/<int:pk>/edit/ models/nodes/<int:pk>/remove/
    models/scan/
    api/v1/config/ api/v1/downloads/ api/v1/downloads/<uuid:pk>/ api/v1/downloads/<uuid:pk>/cancel/
    api/v1/downloads/<uuid:pk>/retry/ api/v1/external-servers/ api/v1/external-servers/<int:pk>/
    api/v1/external-servers/<int:pk>/check/ api/v1/external-servers/<int:pk>/serve/ api/v1/hub/repository/
    api/v1/hub/search/ api/v1/instances/ api/v1/instances/<uuid:pk>/ api/v1/instances/<uuid:pk>/logs/
    api/v1/instances/<uuid:pk>/metrics/ api/v1/instances/<uuid:pk>/slots/ api/v1/instances/<uuid:pk>/timeline/
    api/v1/model-files/ api/v1/model-files/<int:pk>/ api/v1/model-files/scan/
    api/v1/models/<slug:slug>/remedies/ api/v1/models/<slug:slug>/restart/ api/v1/models/<slug:slug>/scale/
    api/v1/models/<slug:slug>/start/ api/v1/models/<slug:slug>/stop/ api/v1/nodes/ api/v1/nodes/<str:name>/
    api/v1/users/ api/v1/users/<int:pk>/ api/v1/prices/ api/v1/prices/<slug:slug>/ api/v1/usage/config/
    api/v1/audit/ api/v1/audit/<int:pk>/ api/v1/limits/ api/v1/limits/<int:pk>/
    settings/limits/all/ settings/limits/all/<int:pk>/ settings/limits/all/<int:pk>/remove/ settings/limits/all/add/
"""
# Tested on their own: the admin site below, signing in by its makers, the OpenAI-compatible API in tests/gateway.
ELSEWHERE = ("admin/", "accounts/", "v1/")

ROUTES = {
    route.removeprefix("/"): least
    for least, routes in {
        "public": PUBLIC,
        "member": MEMBER,
        "owner": OWNER,
        "manager": MANAGER,
        "staff": STAFF,
    }.items()
    for route in routes.split()
}
SHUT = {H.FORBIDDEN, H.NOT_FOUND, H.METHOD_NOT_ALLOWED}


def routes(resolver: URLResolver, prefix: str = "") -> Iterator[str]:
    """Every URL below a resolver, as it spells them."""
    for one in resolver.url_patterns:
        path = prefix + str(one.pattern)
        if isinstance(one, URLResolver):
            yield from routes(one, path)
        elif isinstance(one, URLPattern):
            yield path


def paths(prefix: str) -> list[str]:
    """Those below `prefix` without parameters."""
    found = {path.replace("^", "").rstrip("$").replace("\\Z", "") for path in routes(get_resolver())}
    return sorted(path for path in found if path.startswith(prefix) and not re.search("[<(]", path))


@pytest.fixture
def people() -> dict[str, User]:
    """Somebody in each role. `ada` owns what there is; `mia` manages the team in which ada is."""
    found = {
        name: User.objects.create_user(name, is_staff=name == "boss")
        for name in ("ada", "eve", "mia", "boss")
    }
    team = Team.objects.create(name="Lab")
    Membership.objects.create(team=team, user=found["mia"], role=Membership.Role.OWNER)
    Membership.objects.create(team=team, user=found["ada"])
    return found


@pytest.fixture
def things(people: dict[str, User]) -> dict[str, Any]:
    """What a parameter stands for, by what stands before it."""
    served = serve("http://127.0.0.1:9", "key")
    begun = chat_actions.begin(owner=people["ada"], text="Hello", served=served)
    generation, team = Generation.objects.get(), Team.objects.get()
    return {
        "c/": begun.pk,
        "c/<uuid:pk>/retry/": generation.message_id,
        "api/v1/conversations/": begun.pk,
        "api/v1/generations/": generation.pk,
        "api/v1/instances/": Instance.objects.get().pk,
        "api/v1/model-files/": ModelFile.objects.get().pk,
        "api/v1/models/": served.slug,
        "api/v1/nodes/": Node.objects.get().name,
        "api/v1/users/": people["ada"].pk,
        "models/": served.slug,
        "models/<slug:slug>/log/": Instance.objects.get().pk,
        "models/add/": ModelFile.objects.get().pk,
        "models/nodes/": Node.objects.get().pk,
        "teams/": team.pk,
        "teams/<int:pk>/members/": people["ada"].pk,
        "api/v1/teams/": team.pk,
        "api/v1/teams/<int:pk>/members/": "ada",
        "usage/teams/": team.pk,
    }


def path_of(route: str, things: dict[str, Any]) -> str:
    """The route with its parameters filled in."""
    nothing = {"int": 0, "uuid": uuid4(), "slug": "nothing", "str": "nothing", "path": "nothing"}

    def value(match: "re.Match[str]") -> str:
        return str(things.get(route[: match.start()], nothing[match[1]]))

    return "/" + re.sub(r"<(\w+):\w+>", value, route)


def wrong(
    client: Client,
    things: dict[str, Any],
    asked: Callable[[str], bool],
    is_right: Callable[[int, str], bool],
    *methods: str,
) -> dict[str, int]:
    """The addresses that answer otherwise, of those asked for, with what they answer."""
    found = {}
    for route in (one for one in ROUTES if asked(ROUTES[one])):
        for method in methods or ("get", "post"):
            # A proxy's header: requests from the machine itself may read /metrics.
            answer = getattr(client, method)(
                path_of(route, things), headers={"x-forwarded-for": "203.0.113.9"}, **_body(method)
            )
            if not is_right(answer.status_code, answer.get("location", "")):
                found[f"{method} {route}"] = answer.status_code
    return found


def _body(method: str) -> dict[str, str]:
    return {} if method == "get" else {"data": "{}", "content_type": "application/json"}


def of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def test_every_address_is_named():
    there = {route for route in routes(get_resolver()) if not route.startswith(ELSEWHERE)}

    assert there - set(ROUTES) == set(), "name them above, under the least who may open them"
    assert set(ROUTES) - there == set(), "these are gone"


def test_nobody_gets_anything_without_signing_in(client, things):
    def is_shut(status: int, location: str) -> bool:
        return status in {*SHUT, H.UNAUTHORIZED} or (status == H.FOUND and "/accounts/login/" in location)

    assert wrong(client, things, lambda least: least != "public", is_shut) == {}


def test_strangers_get_nothing_that_is_not_theirs(people, things):
    def is_shut(status: int, location: str) -> bool:
        return status in SHUT

    assert wrong(of(people["eve"]), things, {"owner", "manager", "staff"}.__contains__, is_shut) == {}


def test_conversations_are_their_owners_even_before_staff(people, things):
    for name in ("boss", "mia"):
        found = wrong(
            of(people[name]),
            things,
            "owner".__eq__,
            lambda status, _: status in {H.NOT_FOUND, H.METHOD_NOT_ALLOWED},
        )
        assert found == {}, name


def test_everybody_reaches_what_is_theirs(people, things):
    def is_open(status: int, _: str) -> bool:
        return (status not in {H.UNAUTHORIZED, H.FORBIDDEN} and status < H.INTERNAL_SERVER_ERROR) or (
            status == H.SERVICE_UNAVAILABLE
        )

    def is_found(status: int, _: str) -> bool:
        return is_open(status, _) and status != H.NOT_FOUND

    for name, least, is_right in (
        ("eve", {"public", "member"}, is_open),
        ("ada", {"owner"}, is_found),
        ("mia", {"manager"}, is_open),
        ("boss", {"public", "member", "manager", "staff"}, is_open),
    ):
        assert wrong(of(people[name]), things, least.__contains__, is_right, "get") == {}, name


def test_a_key_opens_what_its_scopes_say(people, things):
    def through_rest(scopes: tuple[str, ...], method: str) -> set[int]:
        _, key = key_actions.create_api_key(
            user=people["boss"], name="k", by=None, rights=KeyRights(scopes=scopes)
        )
        program = Client(headers={"authorization": f"Bearer {key}"})
        rest = [one for one, least in ROUTES.items() if one.startswith("api/v1/") and least != "public"]
        return {getattr(program, method)(path_of(one, things), **_body(method)).status_code for one in rest}

    read, write, inference = ApiKey.Scope.READ, ApiKey.Scope.WRITE, ApiKey.Scope.INFERENCE
    assert through_rest((inference,), "get") == {H.FORBIDDEN}
    assert through_rest((inference, read), "post") == {H.FORBIDDEN}
    assert through_rest((write,), "get") == {H.FORBIDDEN}
    assert not {H.UNAUTHORIZED, H.FORBIDDEN} & through_rest((read,), "get")


def test_a_key_opens_no_page(people, things):
    rights = KeyRights(scopes=tuple(ApiKey.Scope.values))
    _, key = key_actions.create_api_key(user=people["boss"], name="k", by=None, rights=rights)
    program = Client(headers={"authorization": f"Bearer {key}"})

    for route in (one for one, least in ROUTES.items() if least != "public" and not one.startswith("api/")):
        answer = program.get(path_of(route, things), headers={"x-forwarded-for": "203.0.113.9"})
        assert answer.status_code in {H.FOUND, H.UNAUTHORIZED, *SHUT}, route


# The admin site -----------------------------------------------------------------------------------------------------


def test_members_do_not_reach_the_admin_site(people):
    member = of(people["eve"])
    for path in paths("admin/"):
        answer = member.get(f"/{path}")
        assert answer.status_code in {H.FOUND, H.FORBIDDEN, H.NOT_FOUND}, path
        if answer.status_code == H.FOUND and path != "admin/logout/":
            assert member.get(answer["location"], follow=True).status_code != H.OK, path


def test_nobody_reaches_the_admin_site_without_signing_in(client):
    for path in paths("admin/"):
        answer = client.get(f"/{path}")
        assert answer.status_code in {H.FOUND, *SHUT}, path
        if answer.status_code == H.FOUND:
            assert "/accounts/login/" in answer["location"] or answer["location"].startswith("/admin/")


@pytest.mark.parametrize("path", paths("admin/"))
def test_administrators_reach_the_admin_site(client, path):
    client.force_login(User.objects.create_superuser("root"))

    assert client.get(f"/{path}", follow=True).status_code in {
        H.OK,
        H.FORBIDDEN,  # e.g. adding usage records
        H.NOT_FOUND,  # views that need parameters
        H.BAD_REQUEST,
        H.METHOD_NOT_ALLOWED,
    }, path


def test_staff_administer_without_being_superusers(client):
    client.force_login(User.objects.create_user("staff", is_staff=True))

    for path in ("accounts/user/", "models_admin/servedmodel/", "gateway/usagerecord/"):
        assert client.get(f"/admin/{path}").status_code == H.OK, path


def test_passwords_are_not_reset_by_mail(client):
    User.objects.create_user("ada", email="ada@example.org")

    response = client.post("/accounts/password/reset/", {"email": "ada@example.org"})

    assert response.status_code == H.NOT_FOUND
    assert "administrator" in response.content.decode()


def test_signing_up_is_closed(client):
    response = client.post(
        "/accounts/signup/",
        {"username": "eve", "password1": "a long password 1", "password2": "a long password 1"},
    )

    assert response.status_code == H.OK
    assert not User.objects.filter(username="eve").exists()


def test_pages_forbid_everything_that_is_not_the_portals_own(client):
    policy = client.get("/accounts/login/")["content-security-policy"]

    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_health_asks_nothing_and_readiness_names_each_dependency(client):
    assert client.get("/healthz").json() == {"status": "ok"}

    report = client.get("/readyz").json()

    assert set(report) == {"status", "database", "redis", "workers", "models"}
    assert report["database"]["ok"] is True
    assert report["redis"]["ok"] is True
    assert "ready" in report["models"]
