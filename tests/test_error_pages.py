"""What is shown where a request fails on its way through."""

from http import HTTPStatus

import pytest
import redis
from django.db import OperationalError
from django.test import Client

from accounts.models import User
from llamaproj import api

pytestmark = pytest.mark.django_db

AWAY = [OperationalError("the connection is lost"), redis.exceptions.ConnectionError("refused")]


@pytest.fixture
def client() -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.create_user("ada"))
    return client


@pytest.mark.parametrize("error", AWAY, ids=["database", "Valkey"])
def test_what_the_portal_stands_on_is_away_for_a_moment_only(client, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("django.contrib.sessions.backends.cached_db.SessionStore.load", fail)
    page = client.get("/")
    assert page.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert page["retry-after"]
    assert "Back in a moment" in page.content.decode()
    monkeypatch.undo()

    monkeypatch.setattr(api, "async_to_sync", lambda report: fail)
    problem = client.get("/api/v1/health/")
    assert (problem.status_code, problem.json()["code"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable")


def test_a_mistake_is_said_with_the_words_under_which_the_log_has_it(client, monkeypatch):
    def fail(*_: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr("chat.views._models", fail)
    page = client.get("/")
    assert page.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
    assert page["x-request-id"] in page.content.decode()
    assert "secret" not in page.content.decode()
