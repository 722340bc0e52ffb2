"""Tokens for programs that sign in as a person."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import jwt
import pytest
from allauth.mfa.totp.internal.auth import (
    TOTP,
    format_hotp_value,
    generate_totp_secret,
    hotp_value,
    yield_hotp_counters_from_time,
)
from django.conf import settings
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.utils import timezone
from rest_framework_simplejwt.token_blacklist.models import OutstandingToken
from rest_framework_simplejwt.tokens import AccessToken

from accounts import tasks
from accounts.models import User
from accounts.tokens import tokens
from llamaproj import env

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def no_failures_yet() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", password=PASSWORD)


def post(path: str, **body: object) -> Any:
    # A strict client: no token of a form is needed, since no cookie is looked at.
    client = Client(enforce_csrf_checks=True)
    return client.post(f"/api/v1/auth/token/{path}", json.dumps(body), content_type="application/json")


def sign_in(password: str = PASSWORD) -> dict[str, Any]:
    answer = post("", username="ada", password=password)
    assert answer.status_code == HTTPStatus.OK, answer.content
    assert answer["cache-control"] == "no-store"
    return answer.json()


def get(access: str, path: str = "models/") -> Any:
    return Client().get(f"/api/v1/{path}", headers={"authorization": f"Bearer {access}"})


def refused(answer: Any, words: str) -> None:
    assert answer.status_code == HTTPStatus.UNAUTHORIZED, answer.content
    assert answer["www-authenticate"] == "Bearer"
    assert words in answer.json()["detail"]


def test_a_token_acts_as_the_person(ada):
    given = sign_in()

    assert given["expires_in"] == 300
    assert get(given["access"]).status_code == HTTPStatus.OK
    assert get(given["access"], "nodes/").status_code == HTTPStatus.FORBIDDEN
    User.objects.update(is_staff=True)
    assert get(given["access"], "nodes/").status_code == HTTPStatus.OK
    made = Client(enforce_csrf_checks=True).post(
        "/api/v1/keys/",
        '{"name": "by a token"}',
        content_type="application/json",
        headers={"authorization": f"Bearer {given['access']}"},
    )
    assert made.status_code == HTTPStatus.CREATED


def test_a_wrong_password_and_a_closed_account_look_the_same(ada):
    refused(post("", username="ada", password="wrong"), "Username or password is wrong")
    refused(post("", username="nobody", password="wrong"), "Username or password is wrong")
    User.objects.update(is_active=False)
    refused(post("", username="ada", password=PASSWORD), "Username or password is wrong")


def test_guessing_is_slowed_down_together_with_the_login_page(ada):
    for _ in range(3):
        refused(post("", username="ada", password="wrong"), "wrong")
    for _ in range(2):
        Client().post("/accounts/login/", {"login": "ada", "password": "wrong"})

    limited = post("", username="ada", password=PASSWORD)

    assert limited.status_code == HTTPStatus.TOO_MANY_REQUESTS
    assert int(limited["retry-after"]) > 0
    assert limited.json()["code"] == "rate_limited"


def test_a_second_factor_is_asked_for_here_too(ada, monkeypatch):
    secret = generate_totp_secret()
    TOTP.activate(ada, secret)
    right = format_hotp_value(hotp_value(secret, list(yield_hotp_counters_from_time())[1]))
    wrong = str((int(right) + 1) % 1_000_000).zfill(6)

    missing = post("", username="ada", password=PASSWORD)
    refused(missing, "code of your second factor")
    assert (missing.json()["code"], missing.json()["param"]) == ("second_factor_needed", "code")
    refused(post("", username="ada", password="wrong", code=right), "Username or password is wrong")
    refused(post("", username="ada", password=PASSWORD, code=wrong), "The code is wrong")
    assert post("", username="ada", password=PASSWORD, code=right).status_code == HTTPStatus.OK
    refused(post("", username="ada", password=PASSWORD, code=right), "The code is wrong")


def test_an_administrator_who_must_have_a_second_factor_gets_no_token_without(ada, monkeypatch):
    monkeypatch.setattr(env, "REQUIRE_MFA", True)
    assert post("", username="ada", password=PASSWORD).status_code == HTTPStatus.OK
    User.objects.update(is_staff=True)

    answer = post("", username="ada", password=PASSWORD)

    assert answer.status_code == HTTPStatus.FORBIDDEN
    assert "second factor" in answer.json()["detail"]


def test_a_renewal_ends_the_token_it_was_asked_with(ada):
    first = sign_in()
    second = post("refresh/", refresh=first["refresh"]).json()

    assert get(second["access"]).status_code == HTTPStatus.OK
    assert second["refresh"] != first["refresh"]
    refused(post("refresh/", refresh=first["refresh"]), "sign in again")
    assert post("refresh/", refresh=second["refresh"]).status_code == HTTPStatus.OK


@pytest.mark.django_db(transaction=True)
def test_of_two_who_renew_with_the_same_token_one_is_refused(ada):
    refresh = sign_in()["refresh"]

    def renew(_: int) -> int:
        try:
            return post("refresh/", refresh=refresh).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(renew, range(4)))

    assert statuses == [HTTPStatus.OK, *[HTTPStatus.UNAUTHORIZED] * 3]


def test_a_revoked_token_renews_nothing(ada):
    refresh = sign_in()["refresh"]

    assert post("revoke/", refresh=refresh).status_code == HTTPStatus.NO_CONTENT
    refused(post("revoke/", refresh=refresh), "sign in again")
    refused(post("refresh/", refresh=refresh), "sign in again")


def test_every_token_of_a_person_ends_at_once(ada):
    own, other = sign_in(), sign_in()

    assert tokens.living(ada).count() == 2
    assert tokens.revoke_all(ada) == 2
    assert tokens.revoke_all(ada) == 0
    for one in (own, other):
        refused(post("refresh/", refresh=one["refresh"]), "sign in again")


@pytest.mark.parametrize("change", ["password", "closed", "removed"])
def test_tokens_end_with_the_account_and_with_the_password(ada, change):
    given = sign_in()
    if change == "password":
        ada.set_password("another long password")
        ada.save()
    elif change == "closed":
        User.objects.update(is_active=False)
    else:
        ada.delete()

    refused(get(given["access"]), "isn't valid or has ended")
    refused(post("refresh/", refresh=given["refresh"]), "sign in again")


def test_a_forged_a_foreign_and_an_old_token_are_nobodys(ada):
    given = sign_in()
    claims = jwt.decode(given["access"], options={"verify_signature": False})
    forged = jwt.encode(claims, "0" * 64, "HS256")
    cookies_key = jwt.encode(claims, settings.SECRET_KEY, "HS256")
    unsigned = jwt.encode(claims, "", "none")
    old = AccessToken.for_user(ada)
    old.set_exp(lifetime=-timedelta(seconds=1))

    for token in (forged, cookies_key, unsigned, str(old), given["refresh"], "eyJ", "x"):
        refused(get(token), "isn't valid or has ended")
    refused(post("refresh/", refresh=given["access"]), "sign in again")


@pytest.mark.parametrize(
    "body", [{}, {"username": "ada"}, {"username": 1, "password": []}, {"refresh": None}]
)
def test_bodies_are_refused_in_words(ada, body):
    for path in ("", "refresh/", "revoke/"):
        answer = post(path, **body)
        assert answer.status_code == HTTPStatus.BAD_REQUEST
        assert answer.json()["param"]


def test_tokens_that_have_run_out_are_forgotten(ada):
    sign_in()
    OutstandingToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))

    tasks.clear_tokens()

    assert not OutstandingToken.objects.exists()


# Other origins ------------------------------------------------------------------------------------------------------


def test_other_origins_use_rest_only_where_they_are_allowed_and_never_with_a_session(client, ada, settings):
    settings.CORS_ALLOWED_ORIGINS = ["https://app.example.org"]
    client.force_login(ada)

    def answer(path: str, origin: str) -> Any:
        return client.get(path, headers={"origin": origin})

    allowed = answer("/api/v1/models/", "https://app.example.org")
    assert allowed["access-control-allow-origin"] == "https://app.example.org"
    assert "x-request-id" in allowed["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in allowed
    assert "access-control-allow-origin" not in answer("/api/v1/models/", "https://eve.example.org")
    assert "access-control-allow-origin" not in answer("/models/", "https://app.example.org")
    preflight = client.options(
        "/api/v1/keys/",
        headers={"origin": "https://app.example.org", "access-control-request-method": "POST"},
    )
    assert "authorization" in preflight["access-control-allow-headers"]
    assert "POST" in preflight["access-control-allow-methods"]
