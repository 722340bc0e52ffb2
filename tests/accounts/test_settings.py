"""A person's settings."""

from http import HTTPStatus

import pytest
from django.test import Client

from accounts.models import AuditEntry, User
from accounts.settings.views import browser
from accounts.tokens import tokens

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery"
PAGES = ["", "keys/", "keys/new/", "limits/", "limits/now/", "sessions/", "security/"]
STAFF = ["limits/all/", "limits/all/add/"]
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", password=PASSWORD)


def signed_in(agent: str = FIREFOX) -> Client:
    client = Client(headers={"user-agent": agent})
    client.post("/accounts/login/", {"login": "ada", "password": PASSWORD})
    assert "_auth_user_id" in client.session
    return client


@pytest.mark.parametrize("path", PAGES + STAFF)
def test_each_page_opens_for_the_right_people(ada, client, path):
    nobody = Client().get(f"/settings/{path}")
    assert nobody.status_code == HTTPStatus.FOUND
    assert "/accounts/login/" in nobody["location"]
    client.force_login(ada)
    expected = HTTPStatus.FORBIDDEN if path in STAFF else HTTPStatus.OK
    assert client.get(f"/settings/{path}").status_code == expected
    User.objects.update(is_staff=True)
    assert client.get(f"/settings/{path}").status_code == HTTPStatus.OK


def test_a_person_is_called_as_they_say(ada):
    client = signed_in()
    client.post(
        "/settings/", {"first_name": "Ada", "last_name": "Lovelace", "is_staff": "on", "username": "x"}
    )

    ada.refresh_from_db()
    assert (ada.display_name, ada.is_staff, ada.username) == ("Ada Lovelace", False, "ada")
    too_long = client.post("/settings/", {"first_name": "x" * 151})
    assert too_long.status_code == HTTPStatus.UNPROCESSABLE_ENTITY


def test_one_session_is_ended_and_then_all_others(ada):
    here, phone, other = signed_in(), signed_in("Chrome/1 Android"), signed_in("curl/8")
    tokens.sign_in(here.get("/settings/").wsgi_request, username="ada", password=PASSWORD)

    page = here.get("/settings/sessions/").content.decode()
    for words in ("Firefox on Linux", "Chrome on Android", "this browser", "1 program with tokens"):
        assert words in page, words
    pk = page.split("Chrome on Android")[1].split("/settings/sessions/")[1].split("/")[0]
    here.post(f"/settings/sessions/{pk}/end/")
    assert phone.get("/settings/").status_code == HTTPStatus.FOUND
    assert other.get("/settings/").status_code == HTTPStatus.OK
    here.post("/settings/sessions/others/")

    assert other.get("/settings/").status_code == HTTPStatus.FOUND
    assert here.get("/settings/").status_code == HTTPStatus.OK
    assert not tokens.living(ada).exists()
    assert set(AuditEntry.objects.values_list("verb", flat=True)) == {"session.end", "session.end_others"}


def test_nobody_ends_somebody_elses_session(ada, client):
    mine = signed_in()
    page = mine.get("/settings/sessions/")
    client.force_login(User.objects.create_user("eve"))
    [session, *_] = page.context["sessions"][0]

    assert client.post(f"/settings/sessions/{session.pk}/end/").status_code == HTTPStatus.NOT_FOUND
    assert mine.get("/settings/").status_code == HTTPStatus.OK


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (FIREFOX, "Firefox on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537 Chrome/130 Safari/537 Edg/130", "Edge on Windows"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18 Safari/604", "Safari on iPhone"),
        ("program/1.0 x", "program"),
        ("", "A browser that doesn't say its name"),
    ],
)
def test_a_browser_in_words(agent, words):
    assert browser(agent) == words
