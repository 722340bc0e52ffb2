"""Every page of the portal, for every role: nobody, a member, an administrator."""

from http import HTTPStatus

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from accounts.models import User

pytestmark = pytest.mark.django_db

PUBLIC = {"healthz", "readyz"}
# Pages a member may open; everything else without parameters is for administrators, or needs a key.
MEMBER = {
    "",
    "c/",
    "dashboard/",
    "monitoring/",
    "models/",
    "usage/",
    "teams/",
    "prompts/",
    "settings/",
    "settings/keys/",
    "settings/keys/new/",
    "settings/limits/",
    "settings/limits/now/",
    "settings/security/",
    "settings/sessions/",
    "c/shared/",
    "accounts/2fa/",
    "accounts/sso/",
    "accounts/password/change/",
}


def paths(resolver: URLResolver, prefix: str = "") -> list[str]:
    """Every URL without parameters below a resolver."""
    found = []
    for one in resolver.url_patterns:
        path = prefix + str(one.pattern).lstrip("^").rstrip("$")
        if isinstance(one, URLResolver):
            found += paths(one, path)
        elif isinstance(one, URLPattern) and "<" not in path and "(" not in path:
            found.append(path.replace("\\Z", ""))
    return found


ALL = sorted(set(paths(get_resolver())))


@pytest.fixture
def member(client: Client) -> Client:
    client.force_login(User.objects.create_user("member"))
    return client


@pytest.mark.parametrize("path", [path for path in ALL if path.startswith("admin/")])
def test_members_do_not_reach_the_admin_site(member, path):
    response = member.get(f"/{path}")

    assert response.status_code in {HTTPStatus.FOUND, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}, path
    if response.status_code == HTTPStatus.FOUND:
        assert member.get(response["location"], follow=True).status_code != HTTPStatus.OK or (
            path == "admin/logout/"
        )


@pytest.mark.parametrize("path", [path for path in ALL if not path.startswith(("accounts/", "v1/"))])
def test_nobody_gets_anything_without_signing_in(client, path):
    if path in PUBLIC:
        return
    # A proxy's header: requests from the machine itself may read /metrics.
    response = client.get(f"/{path}", headers={"x-forwarded-for": "203.0.113.9"})

    assert response.status_code in {
        HTTPStatus.FOUND,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
    }, path
    if response.status_code == HTTPStatus.FOUND:
        assert "/accounts/login/" in response["location"] or response["location"].startswith("/admin/")


@pytest.mark.parametrize("path", sorted(MEMBER & set(ALL)))
def test_members_reach_their_pages(member, path):
    assert member.get(f"/{path}", follow=True).status_code == HTTPStatus.OK


@pytest.mark.parametrize("path", [path for path in ALL if path.startswith("admin/")])
def test_administrators_reach_the_admin_site(client, path):
    client.force_login(User.objects.create_superuser("root"))

    assert client.get(f"/{path}", follow=True).status_code in {
        HTTPStatus.OK,
        HTTPStatus.FORBIDDEN,  # e.g. adding usage records
        HTTPStatus.NOT_FOUND,  # views that need parameters
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.METHOD_NOT_ALLOWED,
    }, path


def test_staff_administer_without_being_superusers(client):
    client.force_login(User.objects.create_user("staff", is_staff=True))

    for path in ("accounts/user/", "models_admin/servedmodel/", "gateway/usagerecord/"):
        assert client.get(f"/admin/{path}").status_code == HTTPStatus.OK, path


def test_passwords_are_not_reset_by_mail(client):
    User.objects.create_user("ada", email="ada@example.org")

    response = client.post("/accounts/password/reset/", {"email": "ada@example.org"})

    assert response.status_code == HTTPStatus.NOT_FOUND
    assert "administrator" in response.content.decode()


def test_signing_up_is_closed(client):
    response = client.post(
        "/accounts/signup/",
        {"username": "eve", "password1": "a long password 1", "password2": "a long password 1"},
    )

    assert response.status_code == HTTPStatus.OK
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
