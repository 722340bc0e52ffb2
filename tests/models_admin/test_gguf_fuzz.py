"""Damaged files: here for some seconds, for an hour with `python -m tests.models_admin.gguf_fuzz --minutes 60`."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from models_admin.files.gguf_header import read
from models_admin.files.gguf_info import GGUFError
from tests.models_admin import gguf_files as g
from tests.models_admin import gguf_fuzz

_SEED = 20_261_121
_SECONDS = 20.0

pytestmark = pytest.mark.slow


def test_no_damaged_file_hangs_crashes_or_fills_the_memory() -> None:
    report = gguf_fuzz.run(_SECONDS, _SEED)
    assert report.problems == []
    assert report.cases > 100
    # Neither are all refused, nor does nothing the faults do matter.
    assert 0.02 < report.accepted / report.cases < 0.9


def test_what_a_reader_does_wrong_is_reported() -> None:
    report = gguf_fuzz.run(120, 1, "tests.models_admin.test_gguf_fuzz:misbehaving", cases=8, case_s=1.0)
    words = ("KeyError", "MemoryError", "took more than 1.0 s", "SIGKILL")
    assert len(report.problems) == len(words), report.problems
    for number, (problem, word) in enumerate(zip(report.problems, words, strict=True)):
        assert problem.startswith(f"case {number}: ")
        assert word in problem
    assert report.accepted == 4


def test_the_untouched_seeds_are_good_files(tmp_path: Path) -> None:
    for parts in gguf_fuzz.seeds():
        paths = [
            g.write(tmp_path / f"m-{number:05}-of-{len(parts):05}.gguf", part)
            for number, part in enumerate(parts, 1)
        ]
        assert read(paths[0]).content_id
    whole = tmp_path / "real.gguf"
    g.write(whole, gguf_fuzz.real_head())
    with whole.open("ab") as file:
        file.truncate(file.tell() + 96_576_768)
    assert read(whole).parameters == 134_515_008


def test_a_case_follows_from_its_seed_and_number() -> None:
    whole, real = gguf_fuzz.seeds(), gguf_fuzz.real_head()
    first = [gguf_fuzz.case(7, number, whole, real) for number in range(50)]
    assert first == [gguf_fuzz.case(7, number, whole, real) for number in range(50)]
    assert first != [gguf_fuzz.case(8, number, whole, real) for number in range(50)]


def test_every_end_of_a_file_is_a_sentence(tmp_path: Path) -> None:
    whole = gguf_fuzz.seeds()[2][0]
    rng = random.Random(_SEED)
    for end in sorted(rng.sample(range(len(whole)), 300)):
        with pytest.raises(GGUFError):
            read(g.write(tmp_path / "cut.gguf", whole[:end]))


def misbehaving(path: Path) -> bool:
    """Raise, eat memory, hang and die, one after the other; then be good."""
    calls = path.parent.parent / "calls"
    number = len(calls.read_bytes()) if calls.exists() else 0
    with calls.open("ab") as file:
        file.write(b".")
    if number == 0:
        raise KeyError("x")
    if number == 1:
        return bool([b"x" * 2**20 for _ in range(10_000)])
    while number == 2:
        time.process_time()
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return True
