"""What no column can hold is refused in words, wherever it comes in."""

import pytest
from django.test import Client

from accounts.models import Team, User
from tests.serving import serve

pytestmark = pytest.mark.django_db

NUL = "a\0b"
# Whoever looks at its first digits only takes it for 1.
LONG = "000000001" + "9" * 12


@pytest.fixture
def boss(client: Client) -> Client:
    client.force_login(User.objects.create_user("boss", is_staff=True))
    serve("http://127.0.0.1:9", "key")
    Team.objects.create(name="Lab")
    return client


@pytest.mark.parametrize("path", ["/c/", "/c/shared/", "/prompts/", "/audit/"])
def test_a_search_for_what_no_text_has_finds_nothing(boss, path):
    assert boss.get(path, {"q": NUL}).status_code == 200


def test_a_form_with_it_is_refused_in_words(boss):
    team = Team.objects.get()

    for path, said in (
        ("/c/new/", {"text": "Hello", "model": NUL}),
        (f"/teams/{team.pk}/members/", {"username": NUL, "role": "member"}),
    ):
        answer = boss.post(path, said)
        assert answer.status_code == 400, path
        assert "a character that can&#x27;t be kept" in answer.content.decode()


def test_rest_refuses_it_in_words(boss):
    asked = boss.get("/api/v1/metrics/", {"node": NUL})
    said = boss.post("/api/v1/limits/", {"user": NUL}, content_type="application/json")

    for answer in (asked, said):
        assert answer.status_code == 400
        assert answer.json()["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("path", "name"), [("/api/v1/users/", "page_size"), ("/monitoring/history/", "minutes")]
)
def test_a_number_is_read_to_its_end(boss, path, name):
    assert boss.get(path, {name: LONG}).status_code == 400
