import pytest

from models_admin.scaling import Load, Policy, is_calm, target

ONE_TO_THREE = Policy(least=1, most=3, idle_timeout_s=900)
ON_DEMAND = Policy(least=0, most=1, idle_timeout_s=60)


def load(**how: float) -> Load:
    usual = {
        "ready": 1,
        "slots": 4,
        "busy": 0,
        "queued": 0,
        "queued_for_s": 0.0,
        "calm_for_s": 0.0,
        "idle_s": 0.0,
    }
    return Load(**usual | how)  # type: ignore[arg-type]


def test_a_queue_that_lasts_adds_one_replica() -> None:
    waiting = load(busy=4, queued=3, queued_for_s=5)
    assert target(1, waiting, ONE_TO_THREE, asked=False) == 2


@pytest.mark.parametrize(
    "how",
    [
        {"queued": 3, "queued_for_s": 1},  # a moment's crowd
        {"queued": 0, "queued_for_s": 0, "busy": 4},  # busy is not too busy
        {"queued": 3, "queued_for_s": 60, "ready": 0},  # the one wanted isn't there yet
    ],
)
def test_otherwise_none_is_added(how: dict[str, float]) -> None:
    assert target(1, load(**how), ONE_TO_THREE, asked=False) == 1


def test_the_most_is_never_passed() -> None:
    crowd = load(ready=3, slots=12, busy=12, queued=50, queued_for_s=600)
    assert target(3, crowd, ONE_TO_THREE, asked=True) == 3
    assert target(5, crowd, ONE_TO_THREE, asked=True) == 3


def test_a_long_calm_takes_one_away_and_a_short_one_does_not() -> None:
    assert target(3, load(ready=3, slots=12, busy=2, calm_for_s=61), ONE_TO_THREE, asked=False) == 2
    assert target(3, load(ready=3, slots=12, busy=2, calm_for_s=30), ONE_TO_THREE, asked=False) == 3


def test_calm_means_that_one_less_would_be_half_idle() -> None:
    assert is_calm(load(ready=2, slots=8, busy=2), ONE_TO_THREE)
    assert not is_calm(load(ready=2, slots=8, busy=3), ONE_TO_THREE)
    assert not is_calm(load(ready=2, slots=8, queued=1), ONE_TO_THREE)
    assert not is_calm(load(ready=0), ONE_TO_THREE)


def test_a_second_one_that_never_comes_is_given_up() -> None:
    alone = load(ready=1, busy=1, calm_for_s=61)
    assert is_calm(alone, ONE_TO_THREE)
    assert target(2, alone, ONE_TO_THREE, asked=False) == 1


def test_adding_and_taking_away_never_alternate() -> None:
    """Whatever was just added for a queue isn't surplus at the same number of busy slots."""
    for busy in range(13):
        two = load(ready=2, slots=8, busy=min(busy, 8), queued=max(0, busy - 8), calm_for_s=600)
        more = target(2, two, ONE_TO_THREE, asked=False) if is_calm(two, ONE_TO_THREE) else 2
        one = load(ready=1, slots=4, busy=min(busy, 4), queued=max(0, busy - 4), queued_for_s=600)
        if more == 1:
            assert target(1, one, ONE_TO_THREE, asked=False) == 1


def test_whoever_asks_gets_one() -> None:
    assert target(0, load(ready=0), ON_DEMAND, asked=True) == 1
    assert target(0, load(ready=0), ON_DEMAND, asked=False) == 0


def test_what_nobody_uses_goes_after_its_timeout_down_to_what_is_kept() -> None:
    idle = load(idle_s=61)
    assert target(1, idle, ON_DEMAND, asked=False) == 0
    assert target(1, load(idle_s=59), ON_DEMAND, asked=False) == 1
    assert target(1, idle, ON_DEMAND, asked=True) == 1
    assert target(1, load(idle_s=10_000), ONE_TO_THREE, asked=False) == 1


def test_what_is_pinned_stays() -> None:
    pinned = Policy(least=0, most=2, idle_timeout_s=60, pinned=True)
    assert target(1, load(idle_s=10_000), pinned, asked=False) == 1
    assert target(2, load(ready=2, idle_s=10_000, calm_for_s=10_000), pinned, asked=False) == 1
