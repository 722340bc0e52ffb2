"""The pages of use: whose it is, for which time, as tables, and as files for spreadsheets."""

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus

import pytest
from asgiref.sync import sync_to_async
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import ApiKey, AuditEntry, Membership, Team, User
from gateway.models import Price, UsageConfig, UsageRecord
from gateway.templatetags.usage import in_money, in_short, stages, stages_in_words
from gateway.usage import books, charts, export, periods, prices, scope
from gateway.usage.report import report
from llamaproj.errors import InvalidInput
from tests.serving import serve

NOW = datetime(2026, 11, 21, 12, 34, tzinfo=UTC)


@pytest.fixture
def team(db):
    return Team.objects.create(name="team")


@pytest.fixture
def people(team):
    made = {
        name: User.objects.create_user(name, is_staff=name == "staff")
        for name in ("ada", "boss", "eve", "staff")
    }
    Membership.objects.create(team=team, user=made["ada"])
    Membership.objects.create(team=team, user=made["boss"], role="admin")
    return made


def use(user, *, at=None, model="open", **more):
    row = {"model_slug": model, "door": "chat", "finish": "stop", "prompt_tokens": 10, "completion_tokens": 5}
    books.write([UsageRecord(user=user, at=at or timezone.now(), total_ms=100, **row | more)])


@pytest.fixture
def used(people, team):
    key = ApiKey.objects.create(user=people["ada"], team=team, name="nightly", digest="1", prefix="sk-1")
    use(people["ada"], model="of-ada")
    use(people["ada"], model="of-the-team", api_key=key, team=team, door="api")
    use(people["eve"], model="of-eve", finish="error", error_code="upstream_lost")
    return key


def get(client, user, path):
    client.force_login(user)
    return client.get(f"/usage/{path}")


@pytest.mark.parametrize(
    ("who", "path", "seen"),
    [
        ("ada", "", {"of-ada", "of-the-team"}),
        ("boss", "", set()),
        ("boss", "teams/{team}/", {"of-the-team"}),
        ("staff", "teams/{team}/", {"of-the-team"}),
        ("staff", "all/", {"of-ada", "of-the-team", "of-eve"}),
        ("eve", "?person={ada}&model=of-ada", set()),
    ],
)
def test_everybody_sees_their_own_and_that_of_teams_they_manage(client, people, team, used, who, path, seen):
    page = get(client, people[who], path.format(team=team.pk, ada=people["ada"].pk)).text
    # Behind the chips, which repeat what was asked for.
    tables = page[page.find('<dl class="figures">') :] if '<dl class="figures">' in page else ""
    assert {slug for slug in ("of-ada", "of-the-team", "of-eve") if f">{slug}<" in tables} == seen


@pytest.mark.parametrize("file", ["", "sums.csv", "requests.csv"])
def test_a_team_is_not_there_for_those_who_do_not_manage_it(client, people, team, used, file):
    for who in ("ada", "eve"):
        assert get(client, people[who], f"teams/{team.pk}/{file}").status_code == HTTPStatus.NOT_FOUND
        assert get(client, people[who], f"all/{file}").status_code == HTTPStatus.FORBIDDEN
    assert get(client, people["boss"], "settings/").status_code == HTTPStatus.FORBIDDEN


def test_who_may_look_at_several_can_choose(client, people, team):
    assert 'aria-label="Whose use"' not in get(client, people["ada"], "").text
    assert f"/usage/teams/{team.pk}/?period=7d" in get(client, people["boss"], "").text
    assert "/usage/all/?period=7d" in get(client, people["staff"], "").text


def test_nothing_used_says_what_belongs_here(client, people):
    page = get(client, people["eve"], "").text
    assert "Nothing was used in the last 7 days" in page
    assert "uplot/uPlot.iife.js" not in page


def test_a_page_costs_the_same_however_much_there_is(client, people, django_assert_max_num_queries):
    for hour in range(30):
        use(people["ada"], at=timezone.now() - timedelta(hours=hour), model=f"m{hour % 9}")
    client.force_login(people["staff"])
    with django_assert_max_num_queries(16):
        page = client.get("/usage/all/").text
    assert "other models" in page


@pytest.mark.parametrize(
    "query",
    [
        "period=1y",
        "from=x",
        "from=2026-02-30",
        "from=2026-03-01&to=2026-02-01",
        "key=x",
        "person=x",
        "from=1999-01-01",
        "from=2000-01-01&to=2026-01-01",
    ],
)
def test_what_cannot_be_meant_is_refused(client, people, query):
    assert get(client, people["ada"], f"?{query}").status_code == HTTPStatus.BAD_REQUEST


def test_strange_names_are_only_text(client, people):
    use(people["ada"], model="</script><script>alert(1)</script>")
    page = get(client, people["ada"], "").text
    assert "<script>alert" not in page


def test_pages_have_no_styles_of_their_own(client, people, used):
    assert " style=" not in get(client, people["staff"], "all/").text


# Periods --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "since", "until", "step", "steps"),
    [
        ({}, "2026-11-14T13", "2026-11-21T13", "hour", 168),
        ({"period": "24h"}, "2026-11-20T13", "2026-11-21T13", "hour", 24),
        ({"period": "30d"}, "2026-10-23T00", "2026-11-22T00", "day", 30),
        ({"period": "12m"}, "2025-12-01T00", "2026-12-01T00", "month", 12),
        ({"from": "2026-02-01", "to": "2026-02-01"}, "2026-02-01T00", "2026-02-02T00", "hour", 24),
        ({"from": "2026-02-01", "to": "2026-03-31"}, "2026-02-01T00", "2026-04-01T00", "day", 59),
        ({"from": "2025-01-15", "to": "2025-12-31"}, "2025-01-15T00", "2026-01-01T00", "month", 12),
        ({"from": "2026-11-20"}, "2026-11-20T00", "2026-11-22T00", "hour", 48),
        ({"to": "2026-11-20"}, "2026-11-20T00", "2026-11-21T00", "hour", 24),
    ],
)
def test_a_period_is_cut_into_steps(query, since, until, step, steps):
    period = periods.chosen(query, now=NOW)
    assert (f"{period.since:%Y-%m-%dT%H}", f"{period.until:%Y-%m-%dT%H}") == (since, until)
    assert (period.step, len(period.steps)) == (step, steps)
    assert period.steps[0] == period.since
    assert periods.chosen(period.query, now=NOW) == period


def test_a_period_has_an_end():
    with pytest.raises(InvalidInput):
        periods.chosen({"from": "2010-01-01", "to": "2026-01-01"}, now=NOW)


def test_sums_fall_into_their_steps(people):
    use(people["ada"], at=datetime(2026, 1, 20, tzinfo=UTC), model="a")
    use(people["ada"], at=datetime(2026, 3, 31, 23, 59, tzinfo=UTC), model="b", finish="error")
    # A month that the period cuts, and what lies outside.
    use(people["ada"], at=datetime(2026, 1, 14, tzinfo=UTC), model="a")
    period = periods.chosen({"from": "2026-01-15", "to": "2026-06-30"}, now=NOW)
    found = report(scope.chosen(people["ada"], {}), period, prices.current())
    drawn = charts.columns(found)

    assert found.total.requests == 2
    assert drawn["stacks"]["requests"] == [("answered", [1, 0, 0, 0, 0, 0]), ("failed", [0, 0, 1, 0, 0, 0])]
    assert dict(drawn["stacks"]["model"]) == {"a": [15, 0, 0, 0, 0, 0], "b": [0, 0, 15, 0, 0, 0]}
    assert [len(column) for _, column in drawn["stacks"]["kind"]] == [len(drawn["at"])] * 2


@pytest.mark.parametrize("query", [{"period": "30d"}, {"period": "12m"}, {"from": "2025-11-21"}])
def test_days_and_months_are_read_from_the_sums_of_days(people, query):
    for ago in (0, 3, 40, 400):
        at = NOW - timedelta(days=ago, hours=ago)
        use(people["ada"], at=at, model=f"m{ago}", prompt_tokens=10 + ago)
    period = periods.chosen(query, now=NOW)
    # The same, cut into hours, is read from the hours.
    hourly = replace(period, step=periods.Step.HOUR)
    with CaptureQueriesContext(connection) as asked:
        found = report(scope.chosen(people["ada"], {}), period, prices.current())
    by_hours = report(scope.chosen(people["ada"], {}), hourly, prices.current())

    assert not any("usagehour" in one["sql"] for one in asked)
    assert found.total.requests > 1
    assert (found.total, found.models, found.people) == (by_hours.total, by_hours.models, by_hours.people)


# Prices ---------------------------------------------------------------------------------------------------------------


def test_costs_are_shown_where_there_are_prices(client, people, used):
    assert "At today" not in get(client, people["ada"], "").text
    served = serve("http://127.0.0.1:9", "k", slug="of-ada")
    Price.objects.create(
        served=served, prompt_per_million=Decimal(500_000), completion_per_million=Decimal(1_000_000)
    )
    page = get(client, people["ada"], "").text
    assert "10.00 <small>EUR</small>" in page
    assert "At today" in page


def test_administrators_set_prices_and_retention(client, people):
    served = serve("http://127.0.0.1:9", "k", slug="open")
    client.force_login(people["staff"])
    names = [f"price-{served.pk}-{kind}_per_million" for kind in ("prompt", "completion")]
    form = {"retention_days": 30, "currency": "CHF", names[0]: "2.5", names[1]: ""}

    assert client.post("/usage/settings/", form)["location"] == "/usage/settings/"
    assert (UsageConfig.current().retention_days, UsageConfig.current().currency) == (30, "CHF")
    assert (served.price.prompt_per_million, served.price.completion_per_million) == (Decimal("2.5"), 0)
    assert 'value="2.5"' in client.get("/usage/settings/").text
    assert set(AuditEntry.objects.values_list("verb", flat=True)) == {"usage.config", "usage.price"}

    client.post("/usage/settings/", form | {names[0]: ""})
    assert not Price.objects.exists()
    refused = client.post("/usage/settings/", form | {"retention_days": 0, names[0]: "-1"})
    assert refused.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert UsageConfig.current().retention_days == 30


# Files ----------------------------------------------------------------------------------------------------------------


async def rows_of(async_client, user, path):
    await async_client.aforce_login(user)
    response = await async_client.get(f"/usage/{path}")
    assert response.status_code == HTTPStatus.OK
    assert response["content-type"] == "text/csv; charset=utf-8"
    assert response["content-disposition"].startswith('attachment; filename="')
    body = b"".join([piece async for piece in response.streaming_content]).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(body)))


@pytest.mark.django_db(transaction=True)
async def test_single_requests_as_a_file(async_client, monkeypatch):
    monkeypatch.setattr(export, "_BATCH", 3)
    user = await User.objects.acreate(username="ada", email="a")
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
    # Several of the same moment stand on both sides of a batch's end.
    rows = [
        UsageRecord(
            user=user,
            at=at + timedelta(seconds=number // 4),
            model_slug="m",
            door="api",
            finish="stop",
            prompt_tokens=number,
        )
        for number in range(10)
    ]
    await UsageRecord.objects.abulk_create(rows)
    found = await rows_of(async_client, user, "requests.csv")

    assert sorted(int(row["prompt_tokens"]) for row in found) == list(range(10))
    assert [row["at"] for row in found] == sorted((row["at"] for row in found), reverse=True)
    assert found[-1]["at"] == f"{at:%Y-%m-%d %H:%M:%S}"
    assert found[0]["person"] == "ada"


@pytest.mark.django_db(transaction=True)
async def test_no_cell_is_a_formula(async_client):
    user = await User.objects.acreate(username="@sum(1)")
    key = await ApiKey.objects.acreate(user=user, name='=HYPERLINK("http://evil")', digest="1", prefix="sk-1")
    row = UsageRecord(
        user=user, api_key=key, model_slug="-2+3", door="api", finish="stop", request_id="+cmd|' /C calc'!A0"
    )
    await sync_to_async(books.write)([row])
    [single] = await rows_of(async_client, user, "requests.csv")
    [summed] = await rows_of(async_client, user, "sums.csv")

    for told in (single, summed):
        assert not [cell for cell in told.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert single["key_name"] == summed["key_name"] == """'=HYPERLINK("http://evil")"""
    assert (summed["model"], summed["requests"]) == ("'-2+3", "1")


# Words ----------------------------------------------------------------------------------------------------------------


def test_the_waterfall_stays_on_its_line():
    record = UsageRecord(
        queue_ms=0.001, load_ms=0, prefill_ms=30, decode_ms=70_000, total_ms=60_000, first_token_ms=31
    )
    drawn = stages(record)
    assert [stage.name for stage in drawn] == ["waiting", "reading", "writing"]
    assert all(stage.width > 0 and stage.x + stage.width <= 1000 for stage in drawn)
    assert stages_in_words(record).endswith("first token after 31 ms, 1 min in all")
    assert stages(UsageRecord()) == []


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0"), (9_999, "9,999"), (12_345, "12.3 k"), (999_999, "1.00 M"), (4_560_000_000, "4.56 B")],
)
def test_large_numbers_are_short(count, words):
    assert in_short(count) == words


@pytest.mark.parametrize(
    ("amount", "words"),
    [(None, "–"), (Decimal(0), "0.00"), (Decimal("0.001"), "< 0.01"), (Decimal("1234.5"), "1,234.50")],
)
def test_money(amount, words):
    assert in_money(amount) == words
