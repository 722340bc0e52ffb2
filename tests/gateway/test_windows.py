"""Sliding windows against a model of them, with a clock of the test's own."""

import random
import re
from collections import defaultdict

import pytest
from django_redis import get_redis_connection

from gateway.admission import scripts

_CLOCK = re.compile(r"^local NOW = .*$", re.MULTILINE)
_BEGIN_MS = 1_800_000_000_000
_WIDTHS_MS = {1: (1000, 60), 3: (1000, 60), 5: (1_800_000, 48)}

RESERVE = """
local needs = {[1] = 1, [3] = tonumber(ARGV[3]), [5] = tonumber(ARGV[3])}
local used, open = used_by(ARGV[2], {1, 3, 5})
return reserve_of(ARGV[2], used, open, needs)
"""
RETURN = "return_to(ARGV[2], ARGV[3], 0, tonumber(ARGV[4]))"
USE = """
local used, open = used_by(ARGV[2], {1, 3, 5})
local room = used[3] and room_in(ARGV[2], 3, used[3], 1) or 0
return {open, used[1] and used[1].total or 0, used[3] and used[3].total or 0, used[5] and used[5].total or 0, room}
"""


class Windows:
    """The scripts' windows at a time that is said."""

    def __init__(self) -> None:
        self.valkey = get_redis_connection()
        self.subject = f"user:{random.randrange(10**9)}"
        self.now_ms = _BEGIN_MS

    def run(self, body: str, *arguments: object) -> object:
        shared = _CLOCK.sub("local NOW = tonumber(ARGV[1])", scripts.SHARED)
        return self.valkey.eval(f"{shared}\n{body}", 0, self.now_ms, self.subject, *arguments)

    def begin_day(self) -> None:
        self.run("call('HSET', windows_of(ARGV[2]), 5, written(begun(5, 1)))")


class Model:
    """What a window is: what was used in buckets of one width, of which the last ones count."""

    def __init__(self) -> None:
        self.buckets: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self.open = 0

    def add(self, metric: int, at_ms: int, amount: int) -> None:
        self.buckets[metric][at_ms // _WIDTHS_MS[metric][0]] += amount

    def total(self, metric: int, now_ms: int) -> int:
        width, count = _WIDTHS_MS[metric]
        oldest = now_ms // width - count
        return sum(amount for bucket, amount in self.buckets[metric].items() if bucket >= oldest)

    def room_ms(self, metric: int, now_ms: int) -> int:
        width, count = _WIDTHS_MS[metric]
        counting = [
            bucket
            for bucket, amount in self.buckets[metric].items()
            if amount > 0 and bucket >= now_ms // width - count
        ]
        return (min(counting, default=now_ms // width) + count + 1) * width - now_ms


@pytest.mark.parametrize("seed", range(4))
def test_they_hold_what_the_model_holds_whenever_requests_come_and_end(seed):
    chance, windows, model = random.Random(seed), Windows(), Model()
    windows.begin_day()
    running: list[tuple[int, int, str]] = []
    for _ in range(150):
        windows.now_ms += chance.choice([0, 3, 400, 2_500, 61_000, 300_000, 4_000_000])
        if running and chance.random() < 0.5:
            began_ms, reserved, said = running.pop(chance.randrange(len(running)))
            really = chance.choice([reserved, 0, 7, reserved + 50])
            windows.run(RETURN, said.partition(" ")[2].rstrip(";"), really)
            model.open -= 1
            for metric in (3, 5):
                model.add(metric, began_ms, really - reserved)
        else:
            reserved = chance.randrange(1, 1000)
            answer = windows.run(RESERVE, reserved)
            assert isinstance(answer, bytes)
            running.append((windows.now_ms, reserved, answer.decode()))
            model.open += 1
            model.add(1, windows.now_ms, 1)
            for metric in (3, 5):
                model.add(metric, windows.now_ms, reserved)

        expected = [model.open, *(model.total(metric, windows.now_ms) for metric in (1, 3, 5))]
        found = windows.run(USE)
        assert isinstance(found, list)
        assert found[:4] == expected
        if expected[2] > 0:
            assert found[4] == model.room_ms(3, windows.now_ms)


def test_a_window_forgets_nothing_while_it_counts_and_everything_after():
    windows = Windows()
    windows.run(RESERVE, 10)

    windows.now_ms += 60_000
    assert windows.run(USE)[2] == 10  # type: ignore[index]
    windows.now_ms += 1_000
    assert windows.run(USE)[2] == 0  # type: ignore[index]


def test_a_clock_that_goes_back_counts_nothing_twice_and_nothing_for_ever():
    windows = Windows()
    windows.run(RESERVE, 10)
    windows.now_ms -= 5_000
    windows.run(RESERVE, 10)
    windows.now_ms += 5_000
    assert windows.run(USE)[2] == 20  # type: ignore[index]

    windows.now_ms += 200_000
    assert windows.run(USE)[2] == 0  # type: ignore[index]
