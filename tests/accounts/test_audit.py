"""The audit trail: who reads it, what is found in it, and that it stays quick and safe to export."""

from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts import audit
from accounts.models import AuditEntry, Membership, Team, User
from accounts.spreadsheet import cell
from accounts.trail.search import Cursor

pytestmark = pytest.mark.django_db


@pytest.fixture
def staff(client):
    user = User.objects.create_user("staff", is_staff=True)
    client.force_login(user)
    return user


def targets(response):
    return [entry.target for entry in response.context["entries"]]


def test_members_do_not_read_it(client):
    client.force_login(User.objects.create_user("member"))
    for path in ("/audit/", "/audit/export/"):
        assert client.get(path).status_code == HTTPStatus.FORBIDDEN


def test_managers_read_their_teams_entries_and_no_others(client):
    mine, other = Team.objects.create(name="Mine"), Team.objects.create(name="Other")
    ada = User.objects.create_user("ada")
    Membership.objects.create(team=mine, user=ada, role="admin")
    for team in (mine, other, None):
        audit.record(None, "team.change", str(team), team=team)

    assert [entry.target for entry in AuditEntry.objects.visible_to(ada)] == ["Mine"]
    client.force_login(ada)
    assert [entry.target for entry in client.get(f"/teams/{mine.pk}/").context["entries"]] == ["Mine"]


def test_an_empty_trail_says_what_belongs_there(client, staff):
    assert "Nothing has happened yet" in client.get("/audit/").content.decode()
    assert "Nothing found" in client.get("/audit/?who=nobody").content.decode()


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("who=ben", ["c"]),
        ("verb=model.start", ["a"]),
        ("verb=model.", ["b", "a"]),
        ("target=A", ["a"]),
        ("text=loudly", ["b"]),
        ("since=2026-03-02", ["c"]),
        ("until=2026-03-01", ["b", "a"]),
        ("since=2026-03-01&until=2026-03-01", ["b"]),
        ("since=nonsense&until=9999-12-31&text=%00", ["c", "b", "a"]),
        ("after=nonsense", ["c", "b", "a"]),
        ("after=99999999999999999-999", ["c", "b", "a"]),
    ],
)
def test_the_page_finds_what_is_asked_for(client, staff, query, found):
    days = {"a": 28, "b": 29, "c": 30}
    for target, by, verb, detail in (
        ("a", "staff", "model.start", {}),
        ("b", "staff", "model.stop", {"how": "loudly"}),
        ("c", "ben", "team.add", {}),
    ):
        at = datetime(2026, 2, 1, 12, tzinfo=UTC) + timedelta(days=days[target] - 1)
        AuditEntry.objects.create(at=at, by_name=by, verb=verb, target=target, detail=detail)
    # 28 February, 1 and 2 March
    assert targets(client.get(f"/audit/?{query}")) == found


def test_pages_follow_each_other_without_gap_or_repeat_also_within_one_moment(client, staff):
    at = datetime(2026, 3, 1, tzinfo=UTC)
    AuditEntry.objects.bulk_create(
        AuditEntry(at=at + timedelta(microseconds=number // 3), by_name="x", verb="v", target=f"{number:03}")
        for number in range(120)
    )
    seen, url = [], "/audit/?who=x"
    while url:
        page = client.get(url)
        seen += targets(page)
        following = page.context["following"]
        url = f"/audit/?who=x&after={following}" if following else ""

    assert seen == [f"{number:03}" for number in reversed(range(120))]


def test_a_cursor_is_read_as_it_was_written():
    cursor = Cursor(datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC), 7)
    assert Cursor.parse(str(cursor)) == cursor


def test_a_late_page_is_entered_by_an_index(client, staff):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    AuditEntry.objects.bulk_create(
        AuditEntry(at=start + timedelta(seconds=number), by_name="x", verb="v", target="t")
        for number in range(5000)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE accounts_auditentry")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        client.get(f"/audit/?after={Cursor(start + timedelta(seconds=100), 0)}")
    sql = next(query["sql"] for query in queries if "ORDER BY" in query["sql"] and "LIMIT 51" in query["sql"])
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + sql)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Index Scan" in plan
    assert "Seq Scan" not in plan


def test_the_export_is_what_was_asked_for_and_runs_no_formula(client, staff):
    audit.record(staff, "team.change", "=HYPERLINK(1)", old="+1", note="plain")
    audit.record(staff, "model.start", "other")

    response = client.get(reverse("audit-export") + "?verb=team.change")

    text = response.content.decode("utf-8-sig")
    assert response["content-type"].startswith("text/csv")
    assert "'=HYPERLINK(1)" in text
    assert "other" not in text


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_no_cell_begins_a_formula(text):
    assert cell(text).startswith("'")


def test_numbers_stay_numbers():
    assert [cell(-1), cell(0.5), cell(None), cell("a=b")] == ["-1", "0.5", "", "a=b"]


def test_what_administrators_do_to_people_is_in_the_trail(client, staff):
    ada = User.objects.create_user("ada", email="old@example.org")
    fields = {"username": "ada", "email": "ada@example.org", "is_active": "on", "is_staff": "on"}
    dates = {"date_joined_0": "2026-01-01", "date_joined_1": "12:00:00"}
    saved = client.post(f"/admin/accounts/user/{ada.pk}/change/", fields | dates)
    assert saved.status_code == HTTPStatus.FOUND
    phrase = "plum tree by the river"
    client.post(f"/admin/accounts/user/{ada.pk}/password/", {"password1": phrase, "password2": phrase})
    del fields["is_active"], fields["is_staff"]
    client.post(f"/admin/accounts/user/{ada.pk}/change/", fields | dates)
    client.post(f"/admin/accounts/user/{ada.pk}/delete/", {"post": "yes"})

    entries = AuditEntry.objects.order_by("pk")
    verbs = ["user.change", "user.password", "user.change", "user.delete"]
    assert [entry.verb for entry in entries] == verbs
    assert {"email", "is_staff"} <= set(entries[0].detail["fields"])
    assert phrase not in str(list(entries.values_list("detail", flat=True)))


def test_a_changed_password_is_in_the_trail(client):
    ada = User.objects.create_user("ada", password="plum tree by the river")
    client.force_login(ada)
    new = "pear tree by the river"
    fields = {"oldpassword": "plum tree by the river", "password1": new, "password2": new}
    client.post("/accounts/password/change/", fields)

    entry = AuditEntry.objects.get()
    assert (entry.by, entry.verb) == (ada, "account.password_changed")


def test_an_entry_says_its_details_in_words():
    detail = {"fields": ["slots", "batch_tokens"], "most_uses": 1, "email": "", "key": True, "team": None}
    said = AuditEntry(detail=detail | {"completion": {"old": "2", "new": "3"}}).facts

    assert said == [
        ("fields", "slots, batch_tokens"),
        ("most uses", "1"),
        ("key", "yes"),
        ("completion", "old 2, new 3"),
    ]
