"""Records on their way into the database: each once, whatever happens on the way."""

import threading
import time
from datetime import UTC, datetime, timedelta
from importlib import import_module
from uuid import uuid4

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models import Sum
from django.db.models.functions import Trunc
from django.utils import timezone
from django_redis import get_redis_connection

from accounts.models import ApiKey, Team, User
from gateway.models import UsageConfig, UsageDay, UsageHour, UsageRecord, UsageTotal
from gateway.usage import books, drain, retention, tasks
from gateway.usage.record import FIELD, STREAM, BadRecord, Record, decode

AT = datetime(2026, 11, 21, 12, 34, 56, tzinfo=UTC)


@pytest.fixture
def valkey():
    client = get_redis_connection("default")
    client.delete(STREAM, drain.BAD)
    yield client
    client.delete(STREAM, drain.BAD)


@pytest.fixture
def user(db):
    return User.objects.create_user("ada")


def record(user=None, **more):
    fields = {"model_slug": "open", "door": "api", "finish": "stop", "at": AT} | more
    return Record(user=user.pk if user else None, **fields)


def send(valkey, *payloads):
    for payload in payloads:
        valkey.xadd(STREAM, {FIELD: payload if isinstance(payload, bytes) else payload.encode()})


def sums():
    return list(UsageHour.objects.order_by("hour").values_list("requests", "prompt_tokens"))


def test_a_record_comes_through_whole(valkey, user):
    sent = record(
        user,
        endpoint="embeddings",
        request_id="req-1",
        error_code="upstream_lost",
        finish="error",
        status=502,
        prompt_tokens=7,
        completion_tokens=11,
        cached_tokens=3,
        queue_ms=1.5,
        load_ms=2.5,
        prefill_ms=3.5,
        first_token_ms=8.5,
        decode_ms=4.5,
        total_ms=99.5,
    )
    send(valkey, sent)

    assert drain.drain() == 1
    row = UsageRecord.objects.get()
    assert (row.pk, row.at, row.user) == (sent.id, AT, user)
    for name in (
        "endpoint",
        "request_id",
        "error_code",
        "finish",
        "status",
        "prompt_tokens",
        "completion_tokens",
    ):
        assert getattr(row, name) == getattr(sent, name), name
    for name in (
        "cached_tokens",
        "queue_ms",
        "load_ms",
        "prefill_ms",
        "first_token_ms",
        "decode_ms",
        "total_ms",
    ):
        assert getattr(row, name) == getattr(sent, name), name
    assert valkey.xlen(STREAM) == 0
    assert valkey.xpending(STREAM, drain.GROUP)["pending"] == 0


def test_hours_and_totals_are_summed(valkey, user):
    key = ApiKey.objects.create(user=user, name="script", digest="d", prefix="sk-1")
    send(
        valkey,
        *[record(user, prompt_tokens=2, total_ms=150) for _ in range(3)],
        record(user, api_key=key.pk, prompt_tokens=5),
        record(user, at=AT + timedelta(hours=1), finish="error"),
        record(user, model_slug="other"),
    )
    drain.drain()
    send(valkey, record(user, prompt_tokens=1, total_ms=1_000))
    drain.drain()

    found = {
        (hour.hour.hour, hour.api_key_id, hour.model_slug): (hour.requests, hour.errors, hour.prompt_tokens)
        for hour in UsageHour.objects.all()
    }
    assert found == {
        (12, None, "open"): (4, 0, 7),
        (12, key.pk, "open"): (1, 0, 5),
        (13, None, "open"): (1, 1, 0),
        (12, None, "other"): (1, 0, 0),
    }
    total = UsageTotal.objects.get(model_slug="open", finish="stop")
    assert (total.requests, total.prompt_tokens, total.total_ms) == (5, 12, 1_450)
    assert total.within == [1, 4, 4, 5, 5, 5, 5, 5, 5, 5]


_KEY = ("user_id", "team_id", "api_key_id", "model_slug", "door")
_AMOUNTS = (
    "requests",
    "errors",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "queue_ms",
    "total_ms",
)


def days():
    return set(UsageDay.objects.values_list("day", *_KEY, *_AMOUNTS))


def use_of_two_days(user):
    key = ApiKey.objects.create(user=user, name="script", digest="d", prefix="sk-1")
    midnight = datetime(2026, 11, 22, tzinfo=UTC)
    return [
        record(user, at=midnight - timedelta(hours=23), prompt_tokens=1, cached_tokens=1, total_ms=8),
        record(user, at=midnight - timedelta(microseconds=1), prompt_tokens=2, finish="error", queue_ms=2),
        record(user, at=midnight - timedelta(hours=5), prompt_tokens=4, api_key=key.pk, completion_tokens=3),
        record(user, at=midnight, prompt_tokens=8),
    ]


def test_days_begin_at_midnight_utc_and_are_the_sums_of_their_hours(valkey, user):
    for one in use_of_two_days(user):
        send(valkey, one, one)
        drain.drain()

    of_hours = UsageHour.objects.annotate(day=Trunc("hour", "day", tzinfo=UTC)).values("day", *_KEY)
    summed = of_hours.annotate(**{f"sum_{name}": Sum(name) for name in _AMOUNTS}).order_by()
    assert days() == {tuple(row.values()) for row in summed}
    assert sorted(UsageDay.objects.values_list("day__day", "requests", "errors", "prompt_tokens")) == [
        (21, 1, 0, 4),
        (21, 2, 1, 3),
        (22, 1, 0, 8),
    ]


def test_days_of_a_portal_that_had_none_are_made_from_its_hours(valkey, user):
    send(valkey, *use_of_two_days(user))
    drain.drain()
    written = days()
    UsageDay.objects.all().delete()

    with connection.cursor() as cursor:
        cursor.execute(import_module("gateway.migrations.0005_usage_days").DAYS)

    assert len(written) == 3
    assert days() == written


def test_a_key_is_seen_in_use(valkey, user):
    key = ApiKey.objects.create(user=user, name="script", digest="d", prefix="sk-1")
    send(valkey, *[record(user, api_key=key.pk, at=AT + timedelta(seconds=ago)) for ago in (0, 90, 30)])
    drain.drain()
    key.refresh_from_db()
    assert key.last_used_at == AT + timedelta(seconds=90)


def test_what_comes_twice_counts_once(valkey, user):
    one = record(user, prompt_tokens=3)
    send(valkey, one, one)
    assert drain.drain() == 1
    send(valkey, one)
    assert drain.drain() == 0
    assert drain.write_directly([one.encode()]) == 0
    assert sums() == [(1, 3)]
    assert UsageTotal.objects.get().requests == 1


def test_what_a_dead_reader_took_is_taken_over(valkey, user, monkeypatch):
    send(valkey, record(user))
    drain._make_group(valkey)
    valkey.xreadgroup(drain.GROUP, "dead", {STREAM: ">"})

    assert drain.drain() == 0
    monkeypatch.setattr(drain, "TAKEN_OVER_AFTER_MS", 0)
    assert drain.drain() == 1
    assert valkey.xpending(STREAM, drain.GROUP)["pending"] == 0


def test_while_the_database_is_away_records_wait(valkey, user, monkeypatch):
    send(valkey, record(user))

    def away(rows):
        raise OperationalError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(books, "write", away)
        tasks.drain()
    assert valkey.xlen(STREAM) == 1

    monkeypatch.setattr(drain, "TAKEN_OVER_AFTER_MS", 0)
    tasks.drain()
    assert valkey.xlen(STREAM) == 0
    assert sums() == [(1, 0)]


def test_a_valkey_that_was_emptied_is_no_trouble(valkey, user):
    send(valkey, record(user))
    drain.drain()
    valkey.delete(STREAM)
    assert drain.drain() == 0
    send(valkey, record(user))
    assert drain.drain() == 1


BAD = [
    b"",
    b"{",
    b"[]",
    b"{}",
    record().encode().replace(b'"api"', b'"window"'),
    record().encode().replace(b'"id":"', b'"id":"x'),
    record(status="nonsense").encode(),
    record(at=datetime(1, 1, 1, tzinfo=UTC)).encode(),
    record(served=2**64 - 1).encode(),
    record().encode().replace(b'"prompt_tokens":0', b'"prompt_tokens":[]'),
    record().encode().replace(b'"api_key":null', b'"api_key":7'),
]


@pytest.mark.parametrize("payload", BAD)
def test_bad_bytes_are_no_record(payload):
    with pytest.raises(BadRecord):
        decode(payload)


def test_bad_entries_are_set_aside_and_cost_the_others_nothing(valkey, user):
    send(valkey, *BAD, record(user))
    valkey.xadd(STREAM, {"nothing": "here"})

    assert drain.drain() == 1
    assert valkey.xlen(STREAM) == 0
    assert valkey.xlen(drain.BAD) == len(BAD) + 1
    assert all(b"problem" in fields for _, fields in valkey.xrange(drain.BAD))


def test_an_entry_the_database_refuses_is_set_aside(valkey, user, monkeypatch):
    send(valkey, record(user), record(user, request_id="bad"), record(user))

    def without_cutting(payload):
        row = decode(payload)
        if row.request_id == "bad":
            row.model_slug = "m" * 101
        return row

    monkeypatch.setattr(drain, "decode", without_cutting)
    assert drain.drain() == 2
    assert valkey.xlen(drain.BAD) == 1
    assert sums() == [(2, 0)]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({"request_id": "a\0b" * 100}, {"request_id": ("ab" * 100)[:64]}),
        (
            {"prompt_tokens": -1, "completion_tokens": 2**40},
            {"prompt_tokens": 0, "completion_tokens": 2**31 - 1},
        ),
        ({"total_ms": float("nan"), "queue_ms": -3.0}, {"total_ms": 0.0, "queue_ms": 0.0}),
        ({"status": 99_999}, {"status": 2**15 - 1}),
    ],
)
def test_strange_values_are_made_to_fit(valkey, user, sent, kept):
    payload = record(user, **sent).encode()
    if b'"total_ms":null' in payload:
        payload = payload.replace(b'"total_ms":null', b'"total_ms":"nan"')
    send(valkey, payload)

    assert drain.drain() == 1
    row = UsageRecord.objects.get()
    assert {name: getattr(row, name) for name in kept} == kept


def test_a_deleted_key_loses_nothing_but_its_name(valkey, user):
    team = Team.objects.create(name="team")
    key = ApiKey.objects.create(user=user, team=team, name="gone", digest="d", prefix="sk-1")
    send(
        valkey,
        record(user, api_key=key.pk, team=team.pk, instance=uuid4(), served=4_711, prompt_tokens=4),
        record(user),
    )
    old = key.pk
    key.delete()
    team_pk = team.pk
    team.delete()

    assert drain.drain() == 2
    row = UsageRecord.objects.get(prompt_tokens=4)
    assert (row.user, row.api_key, row.team, row.instance, row.served) == (user, None, None, None, None)
    hour = UsageHour.objects.get(prompt_tokens=4)
    assert (hour.api_key_id, hour.team_id) == (old, team_pk)


@pytest.mark.django_db(transaction=True)
def test_several_workers_at_once_write_each_record_once(valkey):
    user = User.objects.create_user("ada")
    sent = [record(user, model_slug=f"m{number % 7}", prompt_tokens=1) for number in range(1_200)]
    send(valkey, *sent, *sent[:300])
    found, failed = [], []

    def work():
        try:
            found.append(drain.drain())
        except Exception as error:
            failed.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert sum(found) == 1_200 == UsageRecord.objects.count()
    assert sum(tokens for _, tokens in sums()) == 1_200
    assert sum(UsageTotal.objects.values_list("requests", flat=True)) == 1_200
    assert sum(UsageDay.objects.values_list("requests", flat=True)) == 1_200


@pytest.mark.django_db(transaction=True)
def test_a_key_deleted_at_the_same_moment_is_looked_for_again():
    user = User.objects.create_user("ada")
    key = ApiKey.objects.create(user=user, name="gone", digest="d", prefix="sk-1")
    row = decode(record(user, api_key=key.pk).encode())
    written = []

    def write():
        try:
            written.append(books.write([row]))
        finally:
            connection.close()

    with transaction.atomic():
        ApiKey.objects.filter(pk=key.pk).delete()
        # It still sees the key, and waits for us when it commits.
        writer = threading.Thread(target=write)
        writer.start()
        deadline = time.monotonic() + 10
        while not waiting_for_a_lock() and time.monotonic() < deadline:
            time.sleep(0.01)
    writer.join()

    assert written == [1]
    assert UsageRecord.objects.get().api_key is None
    assert UsageHour.objects.get().requests == 1


def waiting_for_a_lock():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()[0]


def test_old_records_go_in_batches_and_their_sums_stay(user, monkeypatch):
    monkeypatch.setattr(retention, "_BATCH", 2)
    now = timezone.now()
    books.write(
        [decode(record(user, at=now - timedelta(days=days)).encode()) for days in (1, 9, 11, 12, 13, 14, 15)]
    )
    UsageConfig.objects.create(pk=1, retention_days=10)

    assert retention.prune() == 5
    assert UsageRecord.objects.count() == 2
    assert sum(requests for requests, _ in sums()) == 7
    assert retention.prune() == 0


def test_without_settings_records_are_kept_for_ninety_days(user):
    now = timezone.now()
    books.write([decode(record(user, at=now - timedelta(days=days)).encode()) for days in (89, 91)])
    tasks.prune()
    assert UsageRecord.objects.count() == 1
