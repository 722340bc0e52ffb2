"""People in the admin site: the same rules as everywhere."""

from http import HTTPStatus
from typing import Any

import pytest
from django.test import Client

from accounts.models import AuditEntry, User

pytestmark = pytest.mark.django_db

PEOPLE = "/admin/accounts/user/"


@pytest.fixture
def boss() -> User:
    return User.objects.create_superuser("boss")


@pytest.fixture
def site(boss: User) -> Client:
    client = Client()
    client.force_login(boss)
    return client


def change(site: Client, person: User, **fields: str) -> Any:
    said = {"username": person.username, "date_joined_0": "2026-01-01", "date_joined_1": "12:00:00"}
    return site.post(f"{PEOPLE}{person.pk}/change/", said | fields, follow=True)


def refused(response: Any, words: str) -> None:
    assert response.redirect_chain
    assert response.status_code == HTTPStatus.OK
    assert words in response.content.decode()


@pytest.mark.parametrize("kept", [{"is_active": "on"}, {"is_staff": "on"}, {}])
def test_the_last_administrator_stays_one(site: Client, boss: User, kept: dict[str, str]) -> None:
    refused(change(site, boss, **kept), "Nobody shuts themselves out")

    boss.refresh_from_db()
    assert (boss.is_active, boss.is_staff) == (True, True)
    assert not AuditEntry.objects.exists()


def test_another_administrator_can_be_demoted(site: Client) -> None:
    other = User.objects.create_user("other", is_staff=True)

    change(site, other, is_active="on", first_name="Ada")

    other.refresh_from_db()
    assert (other.is_active, other.is_staff, other.first_name) == (True, False, "Ada")
    entry = AuditEntry.objects.get()
    assert (entry.verb, entry.detail["fields"]) == ("user.change", ["date_joined", "first_name", "is_staff"])


def test_who_can_still_sign_in_is_not_deleted(site: Client, boss: User) -> None:
    ada, gone = User.objects.create_user("ada"), User.objects.create_user("gone", is_active=False)

    for person in (boss, ada):
        refused(
            site.post(f"{PEOPLE}{person.pk}/delete/", {"post": "yes"}, follow=True), "Deactivate the account"
        )
    chosen = {"action": "delete_selected", "_selected_action": [gone.pk, boss.pk], "post": "yes"}
    refused(site.post(PEOPLE, chosen, follow=True), "Deactivate the account")

    assert User.objects.count() == 3
    assert not AuditEntry.objects.exists()
    site.post(f"{PEOPLE}{gone.pk}/delete/", {"post": "yes"})
    assert not User.objects.filter(pk=gone.pk).exists()


def test_names_that_are_taken_are_refused_in_words(site: Client) -> None:
    User.objects.create_user("ada")
    refused(
        change(site, User.objects.create_user("eve"), username="ADA", is_active="on"), "has this name already"
    )
