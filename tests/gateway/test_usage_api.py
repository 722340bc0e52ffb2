"""Use over REST: who sees what, by what it is filtered and summed up, and what it costs."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.http import urlencode

from accounts.models import ApiKey, AuditEntry, Membership, Team, User
from gateway.models import Price, UsageConfig, UsageHour, UsageRecord
from gateway.usage import books
from tests.serving import serve

pytestmark = pytest.mark.django_db


@pytest.fixture
def people():
    team = Team.objects.create(name="team")
    made = {
        name: User.objects.create_user(name, is_staff=name == "staff")
        for name in ("ada", "boss", "eve", "staff")
    }
    Membership.objects.create(team=team, user=made["ada"])
    Membership.objects.create(team=team, user=made["boss"], role="admin")
    return made


@pytest.fixture
def used(people):
    """Ada chats once and uses her team's key twice; Eve fails once with a key of her own."""
    team = Team.objects.get()
    of_team = ApiKey.objects.create(user=people["ada"], team=team, name="team's", digest="1", prefix="sk-1")
    of_eve = ApiKey.objects.create(user=people["eve"], name="eve's", digest="2", prefix="sk-2")
    now = timezone.now()
    plain = {
        "at": now,
        "finish": "stop",
        "door": "api",
        "prompt_tokens": 10,
        "completion_tokens": 1,
        "total_ms": 100,
    }
    rows = [
        {"user": people["ada"], "door": "chat", "model_slug": "open"},
        {"user": people["ada"], "api_key": of_team, "team": team, "model_slug": "open"},
        {"user": people["ada"], "api_key": of_team, "team": team, "model_slug": "other"},
        {
            "user": people["eve"],
            "api_key": of_eve,
            "model_slug": "open",
            "finish": "error",
            "error_code": "upstream_lost",
        },
    ]
    books.write([UsageRecord(**plain | row) for row in rows])
    return {"team": of_team, "eve": of_eve}


def ask(client, who, path, **query):
    client.force_login(who)
    return client.get(f"/api/v1/{path}?{urlencode(query)}")


@pytest.mark.parametrize(("who", "count"), [("ada", 3), ("boss", 2), ("eve", 1), ("staff", 4)])
def test_everybody_sees_their_own_and_that_of_teams_they_manage(client, people, used, who, count):
    records = ask(client, people[who], "usage/").json()["results"]
    [summed] = ask(client, people[who], "usage/summary/").json()["results"]

    assert len(records) == count == summed["requests"]


def test_others_requests_are_not_found_rather_than_forbidden(client, people, used):
    [of_eve] = UsageRecord.objects.filter(user=people["eve"])
    assert ask(client, people["ada"], f"usage/{of_eve.pk}/").status_code == HTTPStatus.NOT_FOUND
    assert ask(client, people["eve"], f"usage/{of_eve.pk}/").json()["error_code"] == "upstream_lost"


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"model": "open"}, 3),
        ({"door": "chat"}, 1),
        ({"finish": "error"}, 1),
        ({"error": "upstream_lost"}, 1),
        ({"user": "eve"}, 1),
        ({"team": "team"}, 2),
        ({"since": "2999-01-01T00:00:00Z"}, 0),
        ({"until": "2999-01-01T00:00:00Z"}, 4),
        ({"endpoint": "embeddings"}, 0),
    ],
)
def test_requests_are_filtered(client, people, used, query, count):
    assert len(ask(client, people["staff"], "usage/", **query).json()["results"]) == count


def test_requests_of_a_key(client, people, used):
    found = ask(client, people["staff"], "usage/", key=used["team"].pk).json()["results"]
    assert {row["key_name"] for row in found} == {"team's"}
    assert len(found) == 2


def test_requests_come_in_pages(client, people):
    now = timezone.now()
    books.write(
        [
            UsageRecord(
                user=people["ada"],
                at=now - timedelta(seconds=ago // 2),
                model_slug="m",
                door="api",
                finish="stop",
            )
            for ago in range(7)
        ]
    )
    client.force_login(people["ada"])
    found, url = [], "/api/v1/usage/?page_size=3"
    while url:
        page = client.get(url).json()
        found += [row["id"] for row in page["results"]]
        url = page["next"]
    assert len(found) == len(set(found)) == 7


@pytest.mark.parametrize(
    "query", [{"since": "yesterday"}, {"key": "x"}, {"door": "window"}, {"page_size": "0"}, {"model": "a\0"}]
)
def test_what_cannot_be_meant_is_refused(client, people, query):
    assert ask(client, people["ada"], "usage/", **query).status_code == HTTPStatus.BAD_REQUEST


def test_sums_by_model_and_key(client, people, used):
    found = ask(client, people["staff"], "usage/summary/", group_by="model,key").json()["results"]
    assert [(row["model"], row["key_name"], row["requests"], row["errors"]) for row in found] == [
        ("open", *rest)
        for rest in sorted(
            [(key_name, 1, errors) for key_name, errors in (("team's", 0), ("eve's", 1), (None, 0))],
            key=lambda each: [row["key_name"] for row in found].index(each[0]),
        )
    ] + [("other", "team's", 1, 0)]
    assert all(row["at"] is row["user"] is row["door"] is None for row in found)


def test_sums_by_time_and_person(client, people):
    for day, tokens in ((3, 5), (3, 7), (4, 11)):
        at = datetime(2026, 11, day, 9, tzinfo=UTC)
        books.write(
            [
                UsageRecord(
                    user=people["ada"], at=at, model_slug="m", door="api", finish="stop", prompt_tokens=tokens
                )
            ]
        )
    query = {"group_by": "user,day", "since": "2026-11-01T00:00:00Z"}
    found = ask(client, people["staff"], "usage/summary/", **query).json()["results"]
    assert [(row["at"], row["user"], row["prompt_tokens"]) for row in found] == [
        ("2026-11-04T00:00:00Z", "ada", 11),
        ("2026-11-03T00:00:00Z", "ada", 12),
    ]
    [month] = ask(client, people["staff"], "usage/summary/", **query | {"group_by": "month"}).json()[
        "results"
    ]
    assert (month["at"], month["prompt_tokens"]) == ("2026-11-01T00:00:00Z", 23)


@pytest.mark.parametrize(
    ("query", "count", "table"),
    [
        ({"since": "2026-11-03T00:00:00Z"}, 3, "usageday"),
        ({"since": "2026-11-03T02:00:00+02:00", "until": "2026-11-04T00:00:00Z"}, 2, "usageday"),
        ({"since": "2026-11-03T09:00:00Z"}, 2, "usagehour"),
        ({"since": "2026-11-03T00:00:00Z", "until": "2026-11-03T09:00:00Z"}, 1, "usagehour"),
        ({"since": "2026-11-03T00:00:00Z", "group_by": "hour"}, 3, "usagehour"),
        ({"since": "2026-11-03T00:00:00+05:00"}, 3, "usagehour"),
    ],
)
def test_sums_of_whole_days_are_read_from_days(client, people, query, count, table):
    for hour in (8, 9, 24 + 9):
        at = datetime(2026, 11, 3, tzinfo=UTC) + timedelta(hours=hour)
        books.write([UsageRecord(user=people["ada"], at=at, model_slug="m", door="api", finish="stop")])
    with CaptureQueriesContext(connection) as asked:
        found = ask(client, people["staff"], "usage/summary/", **query).json()["results"]

    assert sum(row["requests"] for row in found) == count
    assert any(table in one["sql"] for one in asked)


def test_sums_name_nobody_who_is_gone(client, people, used):
    people["eve"].delete()
    assert UsageHour.objects.count() == 4
    found = ask(client, people["staff"], "usage/summary/", group_by="user,key").json()["results"]
    assert sum(row["requests"] for row in found) == 4
    assert {row["user"] for row in found} == {"ada", None}


@pytest.mark.parametrize("group_by", ["colour", "model,model", "hour,day", ","])
def test_sums_are_grouped_by_what_there_is(client, people, group_by):
    response = ask(client, people["ada"], "usage/summary/", group_by=group_by)
    assert (response.status_code, response.json()["param"]) == (HTTPStatus.BAD_REQUEST, "group_by")


def test_nothing_used_is_no_group_at_all(client, people):
    assert ask(client, people["ada"], "usage/summary/").json()["results"] == []


def test_costs_are_todays_prices(client, people, used):
    Price.objects.create(
        served=serve("http://127.0.0.1:9", "k", slug="open"),
        prompt_per_million=Decimal("2.5"),
        completion_per_million=10,
    )
    found = ask(client, people["staff"], "usage/summary/", group_by="model").json()["results"]
    assert {row["model"]: row["cost"] for row in found} == {"open": "0.000105", "other": None}
    assert found[0]["currency"] == "EUR"


def test_prices_are_set_and_removed_by_administrators(client, people):
    serve("http://127.0.0.1:9", "k", slug="open")
    client.force_login(people["staff"])
    price = {"prompt_per_million": "2.5", "completion_per_million": "10"}
    for _ in range(2):
        response = client.put("/api/v1/prices/open/", price, content_type="application/json")
        assert response.json() == {
            "model": "open",
            "prompt_per_million": "2.5000",
            "completion_per_million": "10.0000",
        }
    assert client.get("/api/v1/prices/").json()["count"] == 1
    assert AuditEntry.objects.filter(verb="usage.price").count() == 1
    for _ in range(2):
        assert client.delete("/api/v1/prices/open/").status_code == HTTPStatus.NO_CONTENT
    assert client.get("/api/v1/prices/open/").status_code == HTTPStatus.NOT_FOUND
    assert (
        client.put("/api/v1/prices/nothing/", price, content_type="application/json").status_code
        == HTTPStatus.NOT_FOUND
    )


@pytest.mark.parametrize(
    "price",
    [
        {},
        {"prompt_per_million": "-1", "completion_per_million": "1"},
        {"prompt_per_million": "NaN", "completion_per_million": "1"},
    ],
)
def test_a_price_is_a_number(client, people, price):
    serve("http://127.0.0.1:9", "k", slug="open")
    client.force_login(people["staff"])
    assert (
        client.put("/api/v1/prices/open/", price, content_type="application/json").status_code
        == HTTPStatus.BAD_REQUEST
    )
    assert not Price.objects.exists()


def test_settings_are_changed_by_administrators(client, people):
    client.force_login(people["staff"])
    response = client.patch("/api/v1/usage/config/", {"retention_days": 7}, content_type="application/json")
    assert response.json() == {"retention_days": 7, "currency": "EUR"}
    assert UsageConfig.current().retention_days == 7
    assert AuditEntry.objects.get(verb="usage.config").detail == {"retention_days": 7}
    refused = client.patch("/api/v1/usage/config/", {"retention_days": 0}, content_type="application/json")
    assert refused.status_code == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize("path", ["prices/", "prices/open/", "usage/config/"])
def test_members_do_not_reach_what_administrators_set(client, people, path):
    assert ask(client, people["boss"], path).status_code == HTTPStatus.FORBIDDEN
