from datetime import timedelta

import pytest

from models_admin.models import Node
from monitoring.history import MOST_POINTS, history, prune_samples
from monitoring.models import KEPT_FOR, Sample
from tests.monitoring.conftest import NOON, seconds

pytestmark = pytest.mark.django_db


def test_a_short_time_shows_every_sample(node, sampled):
    for number in range(5):
        sampled(at=NOON - seconds(2 * number), cpu=float(number))
    past = history(node, 1, now=NOON)
    assert past.step_s == 2
    assert past.columns["cpu_percent"] == [4, 3, 2, 1, 0]
    assert past.at[-1] == NOON.timestamp()


def test_a_long_time_shows_means(node, sampled):
    sampled(at=NOON - seconds(3_600), cpu=10.0)
    sampled(at=NOON - seconds(3_598), cpu=30.0)
    sampled(at=NOON, cpu=80.0)
    past = history(node, 1_440, now=NOON)
    assert past.step_s == 144
    assert [value for value in past.columns["cpu_percent"] if value is not None] == [20, 80]


@pytest.mark.parametrize("minutes", [1, 10, 60, 359, 1_440, 10**9])
def test_it_never_has_more_points_than_a_chart_can_show(node, minutes):
    Sample.objects.bulk_create(
        Sample(
            node=node, at=NOON - seconds(20 * number), memory_used_bytes=1, load_1=0, cpu_percent=1, data={}
        )
        for number in range(24 * 180)
    )
    past = history(node, minutes, now=NOON)
    assert 0 < len(past.at) <= MOST_POINTS
    assert {len(column) for column in past.columns.values()} == {len(past.at)}
    assert past.at[-1] >= NOON.timestamp() - past.step_s


def test_what_was_not_measured_is_a_gap(node, sampled):
    for late in (0, 2, 30, 32):
        sampled(at=NOON - seconds(late))
    values = history(node, 10, now=NOON).columns["cpu_percent"]
    assert values == [50, 50, None, 50, 50]


def test_a_late_sample_is_no_gap(node, sampled):
    for late in (0, 2, 6.9, 9):
        sampled(at=NOON - seconds(late))
    assert None not in history(node, 10, now=NOON).columns["cpu_percent"]


def test_unknown_values_stay_unknown(node, sampled):
    sampled(at=NOON, cpu=None)
    assert history(node, 10, now=NOON).columns["cpu_percent"] == [None]


def test_nodes_keep_their_own_past(node, sampled):
    sampled(at=NOON)
    other = Node.objects.create(name="other")
    assert history(other, 10, now=NOON).at == []


def test_a_chart_is_read_without_the_wide_rows(node, sampled, django_assert_num_queries):
    sampled(at=NOON)
    with django_assert_num_queries(1) as queries:
        history(node, 10, now=NOON)
    assert '"data"' not in queries.captured_queries[0]["sql"]


def test_old_samples_go_in_batches(node, sampled, monkeypatch):
    monkeypatch.setattr("monitoring.history._BATCH", 2)
    for number in range(5):
        sampled(at=NOON - KEPT_FOR - timedelta(seconds=1 + number))
    kept = sampled(at=NOON - KEPT_FOR + timedelta(seconds=1))
    assert prune_samples(now=NOON) == 5
    assert list(Sample.objects.all()) == [kept]
    assert prune_samples(now=NOON) == 0
