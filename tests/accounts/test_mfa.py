"""The second factor: set up, asked for, kept secret, reset, and demanded of administrators."""

import time
from http import HTTPStatus

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal import auth
from asgiref.sync import async_to_sync
from channels.testing import WebsocketCommunicator
from django.core.cache import cache
from django.test import Client

from accounts import second_factor
from accounts.models import AuditEntry, User
from accounts.second_factor import SocketGate
from llamaproj import env
from llamaproj.errors import NotAllowed

pytestmark = pytest.mark.django_db

PASSWORD = "plum tree by the river"


@pytest.fixture(autouse=True)
def _fresh_limits():
    cache.clear()


@pytest.fixture
def ada():
    return User.objects.create_user("ada", password=PASSWORD)


def sign_in(client, **fields):
    return client.post("/accounts/login/", {"login": "ada", "password": PASSWORD, **fields})


def confirm(client):
    """Changing how one signs in asks for the password once more."""
    client.post("/accounts/reauthenticate/", {"password": PASSWORD})


def code_of(secret):
    return auth.format_hotp_value(auth.hotp_value(secret, int(time.time()) // 30))


def set_up(client):
    """Turn the second factor on from the page. Returns the secret."""
    sign_in(client)
    confirm(client)
    page = client.get("/accounts/2fa/totp/activate/")
    secret = page.context["form"].secret
    assert secret in page.content.decode()
    answer = client.post("/accounts/2fa/totp/activate/", {"code": code_of(secret)})
    assert answer["location"] == "/accounts/2fa/recovery-codes/"
    return secret


@pytest.mark.django_db(transaction=True)
def test_a_code_is_asked_for_once_it_is_set_up(client, ada):
    secret = set_up(client)
    codes = client.get("/accounts/2fa/recovery-codes/").context["unused_codes"]
    assert len(codes) == 10

    other = Client()
    assert sign_in(other)["location"] == "/accounts/2fa/authenticate/"
    assert other.get("/").status_code == HTTPStatus.FOUND
    wrong = other.post("/accounts/2fa/authenticate/", {"code": "000000"})
    assert "Incorrect code" in wrong.content.decode()
    cache.clear()  # a code is good once
    other.post("/accounts/2fa/authenticate/", {"code": code_of(secret)})
    assert other.get("/teams/").status_code == HTTPStatus.OK

    without_phone = Client()
    sign_in(without_phone)
    without_phone.post("/accounts/2fa/authenticate/", {"code": codes[0]})
    assert without_phone.get("/teams/").status_code == HTTPStatus.OK
    assert AuditEntry.objects.filter(verb="account.totp_activated", by=ada).exists()


def test_a_wrong_code_sets_nothing_up(client, ada):
    sign_in(client)
    confirm(client)
    client.get("/accounts/2fa/totp/activate/")
    page = client.post("/accounts/2fa/totp/activate/", {"code": "000000"})

    assert "Incorrect code" in page.content.decode()
    assert not Authenticator.objects.exists()


def test_the_secret_is_not_in_the_database(client, ada, settings):
    secret = set_up(client)
    kept = str(list(Authenticator.objects.values_list("data", flat=True)))
    assert secret not in kept

    box = second_factor.SecondFactors()
    sealed = box.encrypt(secret)
    assert box.decrypt(sealed) == secret
    settings.SECRET_KEY = "another key"
    assert box.decrypt(sealed) not in {secret, ""}
    assert box.decrypt(sealed) != box.decrypt(sealed)


def test_an_administrator_resets_what_was_lost_and_nobody_else_does(client, ada):
    set_up(client)
    staff = User.objects.create_user("staff", is_staff=True)
    with pytest.raises(NotAllowed):
        second_factor.reset(ada, by=ada)
    admin = Client()
    admin.force_login(staff)
    admin.post(
        "/admin/accounts/user/", {"action": "reset_second_factor", "_selected_action": [ada.pk]}, follow=True
    )

    assert sign_in(Client())["location"] == "/"
    assert AuditEntry.objects.filter(verb="mfa.reset", by=staff).exists()


def test_turning_it_off_takes_a_code_and_is_in_the_trail(client, ada):
    set_up(client)
    client.post("/accounts/2fa/totp/deactivate/")

    assert not Authenticator.objects.exists()
    assert AuditEntry.objects.filter(verb="account.totp_deactivated").exists()


def test_administrators_reach_nothing_without_a_factor_where_it_is_demanded(client, ada, monkeypatch):
    monkeypatch.setattr(env, "REQUIRE_MFA", True)
    member = Client()
    member.force_login(User.objects.create_user("member"))
    assert member.get("/teams/").status_code == HTTPStatus.OK

    User.objects.filter(pk=ada.pk).update(is_staff=True)
    sign_in(client)
    for path in ("/", "/admin/", "/audit/", "/teams/", "/models/", "/accounts/password/change/"):
        assert client.get(path)["location"] == "/accounts/2fa/totp/activate/", path
    refused = client.get("/api/v1/models/")
    assert refused.status_code == HTTPStatus.FORBIDDEN
    assert "second factor" in refused.json()["detail"]

    set_up(client)
    assert client.get("/audit/").status_code == HTTPStatus.OK


def test_sockets_do_not_open_for_them_either(monkeypatch):
    monkeypatch.setattr(env, "REQUIRE_MFA", True)

    async def application(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})

    async def opens_for(user):
        socket = WebsocketCommunicator(SocketGate(application), "/ws/models/")
        socket.scope["user"] = user
        opened, _ = await socket.connect()
        await socket.wait()
        return opened

    staff = User.objects.create_user("staff", is_staff=True)
    member = User.objects.create_user("member")
    assert not async_to_sync(opens_for)(staff)
    assert async_to_sync(opens_for)(member)


def test_a_program_needs_the_code_as_well(client, ada, monkeypatch):
    secret = set_up(client)
    cache.clear()  # a code is good once

    def ask(**more):
        body = {"username": "ada", "password": PASSWORD, **more}
        return Client().post("/api/v1/auth/token/", body, "application/json")

    for refused in (ask(), ask(code="000000"), ask(code=code_of(secret), password="wrong")):
        assert refused.status_code == HTTPStatus.UNAUTHORIZED
    assert "access" in ask(code=code_of(secret)).json()

    monkeypatch.setattr(env, "REQUIRE_MFA", True)
    User.objects.create_user("root", password=PASSWORD, is_staff=True)
    assert ask(username="root").status_code == HTTPStatus.FORBIDDEN
