import pytest
from hypothesis import given
from hypothesis import strategies as st

from models_admin.memory.correction import Sight, corrected
from models_admin.memory.memory_estimate import MemoryEstimate

# 1,000 in all, of which 50 only when full.
MEMORY = MemoryEstimate(weights=500, kv_cache=300, compute=100, process=100, only_when_full=50)


def test_without_sights_the_estimate_stands() -> None:
    assert corrected(MEMORY, "a", []) == 1000


def test_the_same_launch_is_what_was_seen_and_a_little() -> None:
    others = [Sight("b", 950, 500)]
    assert corrected(MEMORY, "a", [*others, Sight("a", 950, 1200)]) == 1224
    # Seen with short prompts: the rest of its contexts is still to come.
    assert corrected(MEMORY, "a", [*others, Sight("a", 950, 800)]) == 850
    # Seen as large as it was estimated: it was full.
    assert corrected(MEMORY, "a", [Sight("a", 950, 1000)]) == 1020


def test_another_launch_tells_what_is_wrong_with_all() -> None:
    assert corrected(MEMORY, "a", [Sight("b", 400, 440)]) == 950 + 40 + 50
    assert corrected(MEMORY, "a", [Sight("b", 400, 370)]) == 950 - 30 + 50


def test_one_odd_sight_among_others_changes_nothing() -> None:
    sights = [Sight("b", 940, 960), Sight("c", 950, 970), Sight("d", 960, 1900)]
    assert corrected(MEMORY, "a", sights) == 950 + 20 + 50


def test_what_grows_faster_than_estimated_is_learned() -> None:
    sights = [Sight(str(size), size, 100 + size * 3 // 2) for size in (200, 400, 600)]
    assert corrected(MEMORY, "a", sights) == pytest.approx(100 + 950 * 1.5 + 50, abs=1)


def test_a_slope_needs_launches_of_different_sizes() -> None:
    close = [Sight("b", 900, 905), Sight("c", 901, 925), Sight("d", 902, 945)]
    assert corrected(MEMORY, "a", close) == pytest.approx(950 + 24 + 50, abs=1)


def test_absurd_sights_dont_make_absurd_estimates() -> None:
    assert corrected(MEMORY, "a", [Sight("b", 10, 10**9)]) == 1900 + 50
    assert corrected(MEMORY, "a", [Sight("b", 10**9, 10)]) == 475 + 50


sizes = st.integers(1, 10**6)


@given(st.lists(st.builds(Sight, st.sampled_from("abcd"), sizes, sizes), max_size=6))
def test_never_less_than_what_this_very_launch_was_seen_to_take(sights: list[Sight]) -> None:
    result = corrected(MEMORY, "a", sights)
    same = next((sight for sight in sights if sight.key == "a"), None)
    assert result >= (same.measured_bytes if same else 500)
