import random
import statistics as stdlib

import pytest

from gateway.models import BUCKETS_MS, UsageRecord
from gateway.usage import books
from monitoring.statistics import WINDOWS, compute, only, statistics
from monitoring.usage_totals import usage_totals
from tests.monitoring.conftest import NOON, seconds

pytestmark = pytest.mark.django_db
FIVE = WINDOWS["5m"]


def record(total_ms=100.0, *, ago=1.0, model="a", finish="stop", door="api", **more):
    return UsageRecord.objects.create(
        at=NOON - seconds(ago), model_slug=model, finish=finish, door=door, total_ms=total_ms, **more
    )


def test_nothing_happened():
    found = compute(FIVE, now=NOON)
    assert (found.total.requests, found.total.error_rate, found.total.mean_ms, found.models) == (
        0,
        0,
        None,
        {},
    )
    assert found.total.bars == []


def test_figures_of_known_rows():
    for ms in (100, 200, 300, 400):
        record(ms, first_token_ms=ms / 10, prompt_tokens=5, completion_tokens=7)
    record(9, finish="error", status=503)
    record(60_000, finish="cancelled", model="b")
    record(1, ago=301)
    total = compute(FIVE, now=NOON).total
    assert (total.requests, total.errors, total.cancelled) == (6, 1, 1)
    assert total.error_rate == pytest.approx(1 / 6)
    assert total.per_second == pytest.approx(6 / 300)
    # Refused and abandoned requests say nothing of how fast answers are.
    assert total.mean_ms == total.p50_ms == pytest.approx(250)
    assert total.p95_ms == pytest.approx(385)
    assert total.first_token_p50_ms == pytest.approx(25)
    assert (total.prompt_tokens, total.completion_tokens) == (20, 28)


def test_percentiles_agree_with_the_standard_library():
    values = [random.Random(7).lognormvariate(7, 1) for _ in range(500)]
    UsageRecord.objects.bulk_create(
        UsageRecord(at=NOON, model_slug="a", finish="stop", door="api", total_ms=value) for value in values
    )
    total = compute(FIVE, now=NOON).total
    cuts = stdlib.quantiles(values, n=100, method="inclusive")
    assert (total.p50_ms, total.p95_ms, total.p99_ms) == pytest.approx((cuts[49], cuts[94], cuts[98]))
    assert sum(total.distribution) == 500


def test_each_model_has_its_own():
    record(100, model="a")
    record(300, model="b")
    record(500, model="b")
    found = compute(FIVE, now=NOON)
    assert {slug: (each.requests, each.mean_ms) for slug, each in found.models.items()} == {
        "a": (1, 100),
        "b": (2, 400),
    }
    assert list(only(found.models, ["a", "b", "gone"])) == ["b", "a"]
    assert list(only(found.models, ["a"])) == ["a"]


def test_a_model_without_a_name_is_not_the_total():
    record(100, model="")
    record(300, model="a")
    assert compute(FIVE, now=NOON).total.requests == 2


@pytest.mark.parametrize(
    ("ms", "step"), [(0, 0), (99.9, 0), (100, 1), (1_500, 4), (100_000, 10), (10**9, 10)]
)
def test_every_duration_has_its_step(ms, step):
    record(ms)
    distribution = compute(FIVE, now=NOON).total.distribution
    assert distribution.index(1) == step
    (bar,) = compute(FIVE, now=NOON).total.bars
    assert bar.share == 1
    assert bar.from_ms <= ms
    assert bar.below_ms is None or ms < bar.below_ms


def test_a_busy_window_is_cut_to_its_newest_and_says_so():
    for ago in range(10):
        record(100 * ago, ago=ago)
    found = compute(FIVE, now=NOON, most=4)
    assert found.capped
    assert found.since == NOON - seconds(3)
    assert found.total.requests == 4
    assert found.total.per_second == pytest.approx(4 / 3)


def test_a_hundred_dashboards_cost_what_one_does(django_assert_num_queries):
    with django_assert_num_queries(1):
        assert statistics(FIVE) == statistics(FIVE)


def totals_of(*rows):
    books.write([UsageRecord(at=NOON, model_slug="a", door="api", **row) for row in rows])


def test_totals_grow_with_every_record():
    totals_of(*[{"finish": "stop", "total_ms": 150, "prompt_tokens": 2, "completion_tokens": 3}] * 12)
    (first,) = usage_totals().values()
    assert (first.requests, first.prompt_tokens, first.completion_tokens) == (12, 24, 36)
    assert first.seconds == pytest.approx(1.8)
    assert dict(zip(BUCKETS_MS, first.within, strict=True)) == {
        bound: 12 if bound >= 200 else 0 for bound in BUCKETS_MS
    }
    totals_of({"finish": "stop", "total_ms": 100})
    (second,) = usage_totals().values()
    assert second.requests == 13
    assert second.within == (1, *[13] * 9)  # a bound counts what equals it


def test_totals_outlive_the_records(django_assert_num_queries):
    totals_of({"finish": "stop"}, {"finish": "error"})
    before = usage_totals()
    UsageRecord.objects.all().delete()
    with django_assert_num_queries(1):
        assert usage_totals() == before
    assert set(before) == {("a", "api", "stop"), ("a", "api", "error")}
