"""Invitations by link: who makes them, who comes in, and how often."""

import threading
from datetime import timedelta
from http import HTTPStatus

import pytest
import structlog
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.utils import timezone

from accounts.models import AuditEntry, Invitation, Membership, Team, User
from accounts.teams import actions, invitations
from accounts.teams.invitations import InvitationSpent
from llamaproj.errors import InvalidInput, LlamaProjError, NotAllowed
from llamaproj.logs import _hide_tokens

pytestmark = pytest.mark.django_db

PASSWORD = "plum tree by the river"
FORM = {"username": "ada", "password1": PASSWORD, "password2": PASSWORD}


@pytest.fixture(autouse=True)
def _fresh_limits():
    cache.clear()


@pytest.fixture
def staff():
    return User.objects.create_user("staff", is_staff=True)


@pytest.fixture
def team(staff):
    return actions.create(name="Research", by=staff)


def client_of(user):
    client = Client()
    client.force_login(user)
    return client


def test_a_new_person_comes_in_by_a_link_once(client, staff, team):
    _, token = invitations.invite(by=staff, team=team, role="admin")
    assert token not in str(Invitation.objects.values_list("digest", "email").get())
    assert len(token) >= 43

    page = client.get(f"/join/{token}/")
    assert "Research" in page.content.decode()
    assert page["referrer-policy"] == "strict-origin"
    assert "no-store" in page["cache-control"]
    assert not User.objects.filter(username="ada").exists()

    answer = client.post(f"/join/{token}/", FORM)
    assert answer.status_code == HTTPStatus.FOUND
    ada = User.objects.get(username="ada")
    assert ada.check_password(PASSWORD)
    assert not ada.is_staff
    assert Membership.objects.get(user=ada).role == "admin"
    assert client.get("/teams/").status_code == HTTPStatus.OK

    late = Client().post(f"/join/{token}/", FORM | {"username": "eve"})
    assert late.status_code == HTTPStatus.NOT_FOUND
    assert not User.objects.filter(username="eve").exists()
    verbs = set(AuditEntry.objects.values_list("verb", flat=True))
    assert {"invitation.create", "user.join", "team.join"} <= verbs


def test_somebody_with_an_account_just_joins_and_twice_is_once(staff, team):
    invitation, token = invitations.invite(by=staff, team=team, most_uses=2)
    ben = User.objects.create_user("ben")
    client = client_of(ben)
    assert "Accept" in client.get(f"/join/{token}/").content.decode()
    assert not team.memberships.exists()

    client.post(f"/join/{token}/")
    client.post(f"/join/{token}/")

    invitation.refresh_from_db()
    assert (team.memberships.get().user, invitation.uses) == (ben, 1)


def test_joining_again_takes_no_role_away(staff, team):
    owner = actions.add(team, User.objects.create_user("ada"), role="owner", by=staff)
    _, token = invitations.invite(by=staff, team=team)

    invitations.join(token, owner.user)

    assert team.memberships.get().role == "owner"


def test_somebody_signs_in_first_without_the_token_in_an_address(client, staff, team):
    _, token = invitations.invite(by=staff, team=team)
    User.objects.create_user("ben", password=PASSWORD)

    answer = client.post(f"/join/{token}/", {"sign-in": "1"})
    assert token not in answer["location"]
    client.post(answer["location"], {"login": "ben", "password": PASSWORD})
    assert client.get("/join/").status_code == HTTPStatus.OK
    client.post("/join/")

    assert team.memberships.get().user.username == "ben"
    assert client.get("/join/").status_code == HTTPStatus.NOT_FOUND


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password1": "short", "password2": "short"}, "too short"),
        ({"password2": "another long phrase"}, "two different passwords"),
        ({"username": "STAFF"}, "already"),
        ({"username": "a b"}, "valid username"),
    ],
)
def test_a_new_account_needs_a_free_name_and_a_good_password(client, staff, change, words):
    invitation, token = invitations.invite(by=staff)

    page = client.post(f"/join/{token}/", FORM | change)

    assert page.status_code == 422
    assert words in page.content.decode()
    invitation.refresh_from_db()
    assert invitation.uses == 0


def test_what_is_revoked_expired_or_unknown_looks_alike(client, staff, team):
    revoked, first = invitations.invite(by=staff, team=team)
    invitations.revoke(revoked, by=staff)
    expired, second = invitations.invite(by=staff, team=team)
    Invitation.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - timedelta(seconds=1))

    pages = [client.get(f"/join/{token}/") for token in (first, second, "x" * 43)]

    assert {page.status_code for page in pages} == {HTTPStatus.NOT_FOUND}
    assert "Research" not in "".join(page.content.decode() for page in pages)


def test_a_link_ends_with_its_makers_rights(staff, team):
    ada = actions.add(team, User.objects.create_user("ada"), role="admin", by=staff)
    _, token = invitations.invite(by=ada.user, team=team)
    _, other = invitations.invite(by=ada.user, team=team)
    invitations.find(token)

    Membership.objects.filter(pk=ada.pk).update(role="member")
    with pytest.raises(InvitationSpent):
        invitations.find(token)
    Membership.objects.filter(pk=ada.pk).update(role="admin")
    User.objects.filter(pk=ada.user.pk).update(is_active=False)
    with pytest.raises(InvitationSpent):
        invitations.find(other)


def test_an_invitation_for_an_address_is_for_that_address(client, staff, team):
    _, token = invitations.invite(by=staff, team=team, email="ada@example.org")
    with pytest.raises(NotAllowed):
        invitations.join(token, User.objects.create_user("ben", email="ben@example.org"))

    client.post(f"/join/{token}/", FORM)
    assert User.objects.get(username="ada").email == "ada@example.org"

    _, second = invitations.invite(by=staff, email="ADA@example.org")
    page = Client().post(f"/join/{second}/", FORM | {"username": "ada2"})
    assert "has an account" in page.content.decode()


def test_who_may_invite_whom(staff, team):
    admin = actions.add(team, User.objects.create_user("ada"), role="admin", by=staff).user
    member = actions.add(team, User.objects.create_user("ben"), role="member", by=staff).user
    for deed in (
        lambda: invitations.invite(by=member, team=team),
        lambda: invitations.invite(by=admin, team=team, role="owner"),
        lambda: invitations.invite(by=admin),
    ):
        with pytest.raises(NotAllowed):
            deed()
    for wrong in ({"days": 0}, {"days": 91}, {"most_uses": 0}, {"email": "a@b.example", "most_uses": 2}):
        with pytest.raises(InvalidInput):
            invitations.invite(by=admin, team=team, **wrong)


def test_the_link_is_shown_once_and_revoked_from_the_page(staff, team):
    admin = actions.add(team, User.objects.create_user("ada"), role="admin", by=staff).user
    client = client_of(admin)
    page = client.post(
        f"/teams/{team.pk}/invite/", {"role": "member", "days": 7, "most_uses": 1}
    ).content.decode()
    assert "http://testserver/join/" in page
    assert "/join/" not in client.get(f"/teams/{team.pk}/").content.decode()
    refused = client.post(f"/teams/{team.pk}/invite/", {"role": "owner", "days": 7, "most_uses": 1})
    assert refused.status_code == 422

    invitation = Invitation.objects.get()
    other = client_of(User.objects.create_user("eve"))
    assert other.post(f"/invitations/{invitation.pk}/revoke/").status_code == HTTPStatus.NOT_FOUND
    client.post(f"/invitations/{invitation.pk}/revoke/")
    assert not Invitation.objects.open().exists()


def test_guessing_is_slow(client, monkeypatch):
    monkeypatch.setattr("accounts.teams.join.time.time", lambda: 1_000_000.0)
    tries = [client.get(f"/join/{number}/").status_code for number in range(31)]

    assert tries[:30] == [HTTPStatus.NOT_FOUND] * 30
    assert tries[30] == HTTPStatus.TOO_MANY_REQUESTS


def test_no_token_is_logged():
    token = "s" * 43
    event = _hide_tokens(None, "", {"request": f"GET /join/{token}/", "event": f"Not Found: /join/{token}/"})

    assert token not in str(event)
    with structlog.testing.capture_logs() as logged:
        Client().get(f"/join/{token}/")
    assert all(token not in str(_hide_tokens(None, "", dict(line))) for line in logged)


@pytest.mark.django_db(transaction=True)
def test_a_link_for_one_used_twice_at_once_makes_one_member():
    staff = User.objects.create_user("staff", is_staff=True)
    team = Team.objects.create(name="Research")
    _, token = invitations.invite(by=staff, team=team)
    people = [User.objects.create_user(f"person-{number}") for number in range(6)]
    start, refused = threading.Barrier(len(people)), []

    def come(user):
        start.wait()
        try:
            invitations.join(token, user)
        except LlamaProjError as error:
            refused.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=come, args=(user,)) for user in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert team.memberships.count() == 1
    assert [type(error) for error in refused] == [InvitationSpent] * 5
