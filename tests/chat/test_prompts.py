"""The prompt library: who sees, changes and uses a prompt."""

from http import HTTPStatus

import pytest
from django.test import Client

from accounts.models import Membership, Team, User
from chat.models import Prompt
from chat.prompts import actions
from llamaproj.errors import InvalidInput, NotAllowed

pytestmark = pytest.mark.django_db


def client_of(user):
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def people():
    """A team of ada (admin), ben and cy; eve is in none."""
    team = Team.objects.create(name="Research")
    made = {name: User.objects.create_user(name) for name in ("ada", "ben", "cy", "eve")}
    for name, role in (("ada", "admin"), ("ben", "member"), ("cy", "member")):
        Membership.objects.create(team=team, user=made[name], role=role)
    return made | {"team": team}


def test_a_prompt_is_ones_own_until_it_is_shared(people):
    prompt = actions.save(by=people["ben"], title=" A  title ", text=" line\r\nline ")
    assert (prompt.title, prompt.text) == ("A title", "line\nline")
    assert not Prompt.objects.visible_to(people["cy"]).exists()

    actions.change(prompt, by=people["ben"], title="T", text="t", team=people["team"])

    assert Prompt.objects.visible_to(people["cy"]).exists()
    assert not Prompt.objects.visible_to(people["eve"]).exists()


def test_members_read_a_shared_prompt_and_managers_change_it(people):
    prompt = actions.save(by=people["ben"], title="T", text="t", team=people["team"])
    for deed in (
        lambda: actions.change(prompt, by=people["cy"], title="X", text="x", team=people["team"]),
        lambda: actions.delete(prompt, by=people["cy"]),
        lambda: actions.change(prompt, by=people["ada"], title="X", text="x", team=None),
    ):
        with pytest.raises(NotAllowed):
            deed()

    actions.change(prompt, by=people["ada"], title="Better", text="x", team=people["team"])
    assert Prompt.objects.get().title == "Better"


def test_who_left_the_team_changes_nothing_in_it(people):
    prompt = actions.save(by=people["ben"], title="T", text="t", team=people["team"])
    Membership.objects.filter(user=people["ben"]).delete()

    assert not Prompt.objects.visible_to(people["ben"]).exists()
    with pytest.raises(NotAllowed):
        actions.delete(prompt, by=people["ben"])

    people["team"].delete()
    assert Prompt.objects.visible_to(people["ben"]).exists()


@pytest.mark.parametrize(
    ("title", "text"), [("", "t"), ("x" * 81, "t"), ("T", ""), ("T", "x" * 20_001), ("T", "a\0b")]
)
def test_a_prompt_without_a_title_or_text_is_not_kept(people, title, text):
    with pytest.raises(InvalidInput):
        actions.save(by=people["ben"], title=title, text=text)


def test_nobody_shares_with_a_team_of_others(people):
    with pytest.raises(InvalidInput):
        actions.save(by=people["eve"], title="T", text="t", team=people["team"])
    page = client_of(people["eve"]).post(
        "/prompts/new/", {"title": "T", "text": "t", "team": people["team"].pk}
    )
    assert page.status_code == HTTPStatus.FOUND
    assert Prompt.objects.get().team is None


def test_the_pages_keep_find_use_change_and_delete(people):
    client = client_of(people["ben"])
    assert "No prompts yet" in client.get("/prompts/").content.decode()
    assert client.post("/prompts/new/", {"title": "", "text": ""}).status_code == 422
    client.post("/prompts/new/", {"title": "Review", "text": "Review this code", "team": people["team"].pk})
    prompt = Prompt.objects.get()

    assert "Review" in client.get("/prompts/?q=code").content.decode()
    assert "Nothing found" in client.get("/prompts/?q=nowhere").content.decode()
    assert 'data-prompt="Review this code"' in client.get("/prompts/choices/").content.decode()
    assert "Review this code</textarea>" in client.get(f"/?prompt={prompt.pk}").content.decode()

    reader = client_of(people["cy"])
    assert "Change<" not in reader.get("/prompts/").content.decode()
    stranger = client_of(people["eve"])
    assert "Review this code" not in stranger.get(f"/?prompt={prompt.pk}").content.decode()
    for other in (reader, stranger):
        for path in ("edit", "delete"):
            answer = other.post(f"/prompts/{prompt.pk}/{path}/", {"title": "X", "text": "x"})
            assert answer.status_code == HTTPStatus.NOT_FOUND

    client.post(f"/prompts/{prompt.pk}/edit/", {"title": "Code", "text": "x", "team": people["team"].pk})
    manager = client_of(people["ada"])
    manager.post(f"/prompts/{prompt.pk}/edit/", {"title": "Codes", "text": "y"})
    prompt.refresh_from_db()
    assert (prompt.title, prompt.team) == ("Codes", people["team"])
    client.post(f"/prompts/{prompt.pk}/delete/")
    assert not Prompt.objects.exists()


def test_programs_do_the_same(people):
    client = client_of(people["ben"])
    made = client.post("/api/v1/prompts/", {"title": "T", "text": "t"}, "application/json")
    assert made.status_code == HTTPStatus.CREATED, made.content
    url = f"/api/v1/prompts/{made.json()['id']}/"
    changed = client.patch(url, {"team": people["team"].pk}, "application/json")
    assert (changed.json()["team"], changed.json()["title"]) == (people["team"].pk, "T")

    reader, stranger = client_of(people["cy"]), client_of(people["eve"])
    assert reader.get("/api/v1/prompts/").json()["count"] == 1
    assert reader.patch(url, {"title": "X"}, "application/json").status_code == HTTPStatus.FORBIDDEN
    assert stranger.get(url).status_code == HTTPStatus.NOT_FOUND
    named = stranger.post(
        "/api/v1/prompts/", {"title": "T", "text": "t", "team": people["team"].pk}, "application/json"
    )
    assert named.status_code == HTTPStatus.BAD_REQUEST
    assert client.delete(url).status_code == HTTPStatus.NO_CONTENT
