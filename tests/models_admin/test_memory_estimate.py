from pathlib import Path

import psutil
import pytest

from models_admin.gguf_header import read
from models_admin.gguf_info import GGUFInfo
from models_admin.memory_estimate import estimate
from tests.conftest import Engine


def info(**keys: object) -> GGUFInfo:
    values = {"general.architecture": "x"} | {
        f"x.{key.replace('__', '.')}": value for key, value in keys.items()
    }
    return GGUFInfo(
        size_bytes=10, metadata=values, parameters=1, tensor_bytes=10, quantization="Q8_0",
        embedding_bytes=1, tied_output=False,
    )  # fmt: skip


def kv(model: GGUFInfo, tokens: int = 256, slots: int = 1, **types: str) -> int:
    return estimate(model, context_tokens=tokens, slots=slots, **types).kv_cache


def test_the_demo_models_cache_is_what_the_engine_logs(demo_model: Path) -> None:
    assert kv(read(demo_model), tokens=4096, slots=4) == 360 * 2**20


def test_the_cache_follows_heads_lengths_and_types() -> None:
    plain = info(block_count=2, embedding_length=64, attention__head_count=4)
    assert kv(plain) == 2 * 256 * 4 * (16 * 2 + 16 * 2)
    grouped = info(
        block_count=2, embedding_length=64, attention__head_count=4, attention__head_count_kv=[1, 2]
    )
    assert kv(grouped) == 256 * 3 * (16 * 2 + 16 * 2)
    assert kv(grouped, cache_type_k="q8_0") < kv(grouped)
    assert kv(plain, tokens=1) == kv(plain, tokens=256)


def test_layers_with_a_window_hold_only_that() -> None:
    model = info(
        block_count=6, embedding_length=64, attention__head_count=4,
        attention__sliding_window=512, attention__sliding_window_pattern=6,
    )  # fmt: skip
    full = info(block_count=6, embedding_length=64, attention__head_count=4)
    assert kv(model, tokens=65_536) < kv(full, tokens=65_536) / 4


def test_missing_or_absurd_keys_give_a_number_all_the_same() -> None:
    for keys in (
        {},
        {"block_count": 2**40},
        {"block_count": 3, "attention__head_count_kv": [True, "x", None]},
    ):
        assert estimate(info(**keys), context_tokens=4096, slots=4).total > 0


@pytest.mark.slow
def test_the_estimate_is_near_what_the_engine_takes(engine: Engine, demo_model: Path) -> None:
    taken = psutil.Process(engine.process.pid).memory_info().rss
    guessed = estimate(read(demo_model), context_tokens=2048, slots=2).total
    assert guessed == pytest.approx(taken, rel=0.2)
