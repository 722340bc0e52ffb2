"""Signing in through an OpenID Connect server, with a real one that knows whomever the test says."""

from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx
import oidc_provider_mock
import pytest
from allauth.account.models import EmailAddress
from allauth.socialaccount.models import SocialAccount
from django.core.cache import cache
from django.test import Client

from accounts.models import AuditEntry, Team, User
from accounts.single_sign_on import vouch_for_address
from accounts.teams import invitations
from llamaproj import env

# The server under test uses a part of its library that is to be replaced.
pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PEOPLE = {
    "ada": {
        "email": "ada@example.org",
        "email_verified": True,
        "preferred_username": "ada",
        "name": "Ada Lovelace",
    },
    "eve": {"email": "ada@example.org", "email_verified": False, "preferred_username": "eve"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    users = [oidc_provider_mock.User(sub=sub, claims=claims) for sub, claims in PEOPLE.items()]
    with oidc_provider_mock.run_server_in_thread(user_claims=users) as running:
        yield f"http://localhost:{running.server_port}"


@pytest.fixture(autouse=True)
def _configured(server, settings, monkeypatch):
    cache.clear()
    app = {"provider_id": "sso", "name": "Company", "client_id": "llamaproj", "secret": "s"}
    apps = [app | {"settings": {"server_url": server}}]
    settings.SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": apps}}
    monkeypatch.setattr(env, "OIDC_SIGNUP", "open")


def dance(client, who, process="login"):
    """Go to the server, say who one is, come back. Returns the portal's answer."""
    leaving = client.post(f"/accounts/oidc/sso/login/?process={process}")
    assert leaving.status_code == HTTPStatus.FOUND
    assert "code_challenge=" in leaving["location"]
    back = httpx.post(leaving["location"], data={"sub": who})
    assert back.status_code == HTTPStatus.FOUND, back.text
    parts = urlsplit(back.headers["location"])
    assert parts.path == "/accounts/oidc/sso/login/callback/"
    return client.get(f"{parts.path}?{parts.query}")


def test_the_sign_in_page_has_a_button_only_where_it_is_configured(client, settings):
    assert "Company" in client.get("/accounts/login/").content.decode()
    settings.SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"APPS": []}}
    assert "Company" not in client.get("/accounts/login/").content.decode()
    assert "http" not in client.get("/accounts/login/")["content-security-policy"]


def test_somebody_new_comes_in_and_comes_back(client, monkeypatch):
    monkeypatch.setattr(env, "OIDC_TEAM", "Everybody")

    dance(client, "ada")

    ada = User.objects.get()
    assert (ada.username, ada.email, ada.get_full_name()) == ("ada", "ada@example.org", "Ada Lovelace")
    assert not ada.is_staff
    assert not ada.has_usable_password()
    assert ada.teams.get().name == "Everybody"
    assert client.get("/teams/").status_code == HTTPStatus.OK
    assert {"user.join", "team.create", "team.add"} <= set(AuditEntry.objects.values_list("verb", flat=True))

    again = Client()
    dance(again, "ada")
    assert again.get("/teams/").status_code == HTTPStatus.OK
    assert User.objects.count() == 1


@pytest.mark.parametrize(
    "address", ["http://localhost:1", "{server}/nothing-here"], ids=["silent", "not such a server"]
)
def test_a_server_that_is_away_is_said_in_words(client, server, settings, address):
    [app] = settings.SOCIALACCOUNT_PROVIDERS["openid_connect"]["APPS"]
    app["settings"]["server_url"] = address.format(server=server)

    page = client.post("/accounts/oidc/sso/login/")

    assert page.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert "single sign-on" in page.content.decode()


def test_the_way_to_the_own_connections_is_shown_where_there_is_one(client, settings):
    client.force_login(User.objects.create_user("ben"))
    assert "/accounts/sso/" in client.get("/settings/security/").content.decode()
    settings.SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"APPS": []}}
    assert "/accounts/sso/" not in client.get("/settings/security/").content.decode()


def test_nobody_new_comes_in_where_that_is_closed(client, monkeypatch):
    monkeypatch.setattr(env, "OIDC_SIGNUP", "closed")

    page = dance(client, "ada")

    assert not User.objects.exists()
    assert page.status_code == HTTPStatus.OK
    assert client.get("/teams/").status_code == HTTPStatus.FOUND


def test_an_invitation_opens_it_once(client, monkeypatch):
    monkeypatch.setattr(env, "OIDC_SIGNUP", "closed")
    staff = User.objects.create_user("staff", is_staff=True)
    team = Team.objects.create(name="Research")
    invitation, token = invitations.invite(by=staff, team=team, email="ada@example.org")
    client.post(f"/join/{token}/", {"sign-in": "1"})

    answer = dance(client, "ada")

    assert answer["location"] == f"/teams/{team.pk}/"
    assert team.memberships.get().user.username == "ada"
    invitation.refresh_from_db()
    assert invitation.uses == 1


def test_an_address_an_administrator_vouched_for_opens_its_account(client):
    ben = User.objects.create_user("ben", email="Ada@example.org")
    vouch_for_address(ben)

    dance(client, "ada")

    assert SocialAccount.objects.get().user == ben
    assert int(client.session["_auth_user_id"]) == ben.pk


@pytest.mark.parametrize(
    ("who", "vouched", "is_staff"),
    [("ada", False, False), ("ada", True, True), ("eve", True, False)],
    ids=["the portal only believes the address", "an administrator's account", "the server only believes it"],
)
def test_no_account_is_opened_by_an_unproved_address(client, who, vouched, is_staff):
    ben = User.objects.create_user("ben", email="ada@example.org", is_staff=is_staff)
    if vouched:
        vouch_for_address(ben)
    else:
        EmailAddress.objects.create(user=ben, email=ben.email, verified=False)

    page = dance(client, who)

    assert page.status_code == HTTPStatus.CONFLICT
    assert "has an account" in page.content.decode()
    assert not SocialAccount.objects.exists()
    assert "_auth_user_id" not in client.session


def test_an_administrator_connects_the_own_account_from_inside(client):
    staff = User.objects.create_user("staff", email="ada@example.org", is_staff=True)
    client.force_login(staff)
    assert "Connect Company" in client.get("/accounts/sso/").content.decode()

    dance(client, "ada", process="connect")
    assert SocialAccount.objects.get().user == staff
    assert AuditEntry.objects.filter(verb="sso.account_connected", by=staff).exists()

    fresh = Client()
    dance(fresh, "ada")
    assert fresh.get("/audit/").status_code == HTTPStatus.OK


def test_the_door_is_shut_for_who_may_not_sign_in(client):
    dance(client, "ada")
    User.objects.update(is_active=False)

    shut = Client()
    dance(shut, "ada")
    assert shut.get("/teams/").status_code == HTTPStatus.FOUND
