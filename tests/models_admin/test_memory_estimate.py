"""What the engine logs of made-up models of many shapes is written here as it logged it, in MiB."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from models_admin.files.gguf_header import read
from models_admin.files.gguf_info import GGUFInfo
from models_admin.memory import memory_estimate, memory_layers
from models_admin.memory.memory_estimate import MemoryEstimate, estimate
from tests.conftest import Engine

MIB = 2**20
VOCABULARY = 49_152


def info(
    architecture: str = "llama", *, tensor_bytes: int = 10, tied: bool = False, **keys: object
) -> GGUFInfo:
    values = {"general.architecture": architecture} | {
        f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()
    }
    return GGUFInfo(
        size_bytes=10, metadata=values, parameters=10, tensor_bytes=tensor_bytes, quantization="Q8_0",
        embedding_bytes=tensor_bytes // 10, tied_output=tied,
    )  # fmt: skip


def shape(layers: int, width: int, inner: int, heads: int, kept: int, head: int) -> dict[str, object]:
    return {
        "block_count": layers, "embedding_length": width, "feed_forward_length": inner,
        "attention__head_count": heads, "attention__head_count_kv": kept,
        "attention__key_length": head, "attention__value_length": head, "vocab_size": VOCABULARY,
    }  # fmt: skip


def kv(model: GGUFInfo, tokens: int = 256, slots: int = 1, **types: str) -> int:
    return estimate(model, context_tokens=tokens, slots=slots, **types).kv_cache


# Two slots of 2,048 tokens, batches of 512: cache, states, scratch memory with and without flash attention.
LOGGED: Mapping[str, tuple[GGUFInfo, float, float, float, float]] = {
    "llama": (info(**shape(3, 576, 1536, 9, 3, 64)), 9, 0, 17.0, 47.9),
    "wide inner layer": (info(**shape(3, 512, 4096, 8, 8, 64)), 24, 0, 31.4, 44.4),
    "many heads": (info(**shape(3, 512, 512, 16, 4, 128)), 24, 0, 15.4, 83.4),
    "few kept": (info(**shape(3, 256, 256, 32, 4, 64)), 12, 0, 12.9, 143.9),
    "all kept": (info(**shape(3, 512, 512, 8, 8, 128)), 48, 0, 15.4, 49.4),
    "gemma3": (info("gemma3", **shape(12, 256, 1024, 4, 2, 64), attention__sliding_window=512), 14, 0, 11.9, 26.4),
    "gemma2": (info("gemma2", **shape(6, 256, 1024, 4, 2, 64), attention__sliding_window=512), 9, 0, 11.9, 26.4),
    "experts": (
        info(
            "qwen3moe", **shape(3, 512, 1024, 8, 2, 64),
            expert_count=16, expert_used_count=4, expert_feed_forward_length=256,
        ),
        6, 0, 13.4, 42.9,
    ),
    "latent attention": (
        info(
            "deepseek2", **shape(3, 256, 512, 4, 1, 160) | {"attention__value_length": 128},
            attention__key_length_mla=96, attention__value_length_mla=64,
        ),
        3.75, 0, 7.9, 25.9,
    ),
    "mamba": (
        info(
            "mamba", block_count=4, embedding_length=512, feed_forward_length=0, attention__head_count=0,
            ssm__conv_kernel=4, ssm__inner_size=1024, ssm__state_size=16, vocab_size=VOCABULARY,
        ),
        0, 0.59, 15.5, 15.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGGED)
def test_the_estimate_is_what_the_engine_logs(name: str) -> None:
    model, cache, states, fused, plain = LOGGED[name]
    with_flash = estimate(model, context_tokens=2048, slots=2)
    without = estimate(model, context_tokens=2048, slots=2, flash_attention=False)
    assert with_flash.kv_cache == without.kv_cache == cache * MIB
    assert with_flash.recurrent / MIB == pytest.approx(states, abs=0.01)
    assert with_flash.compute / MIB == pytest.approx(fused, rel=0.05)
    assert without.compute / MIB == pytest.approx(plain, rel=0.05)


def test_the_demo_models_cache_is_what_the_engine_logs(demo_model: Path) -> None:
    assert kv(read(demo_model), tokens=4096, slots=4) == 360 * MIB


def test_the_cache_follows_heads_lengths_and_types() -> None:
    plain = info(block_count=2, embedding_length=64, attention__head_count=4)
    assert kv(plain) == 2 * 256 * 4 * (16 * 2 + 16 * 2)
    grouped = info(
        block_count=2, embedding_length=64, attention__head_count=4, attention__head_count_kv=[1, 2]
    )
    assert kv(grouped) == 256 * 3 * (16 * 2 + 16 * 2)
    assert kv(grouped, cache_type_k="q8_0") == 256 * 3 * (16 * 34 / 32 + 16 * 2)
    assert kv(grouped, cache_type_v="q4_0") == 256 * 3 * (16 * 2 + 16 * 18 / 32)
    assert kv(plain, tokens=1) == kv(plain, tokens=256) < kv(plain, tokens=257)


def windows(architecture: str, layers: int, **keys: object) -> list[int | None]:
    return [
        layer.window for layer in memory_layers.of(info(architecture, block_count=layers, **keys), "", "")
    ]


def test_which_layers_have_a_window_is_known_by_architecture() -> None:
    window = {"attention__sliding_window": 128}
    assert windows("gpt-oss", 4, **window) == [128, None, 128, None]
    assert windows("gemma3n", 5, **window) == [128, 128, 128, 128, None]
    assert windows("smallthinker", 5) == [None, 4096, 4096, 4096, None]
    assert windows("llama4", 4) == [8192, 8192, 8192, None]
    assert windows("llama4", 4, attention__sliding_window=0) == [None] * 4


def test_the_file_knows_better_than_the_architecture() -> None:
    said = {"attention__sliding_window": 128, "attention__sliding_window_pattern": [True, False, True]}
    assert windows("gemma4", 3, **said) == [128, None, 128]
    assert windows("gemma3", 3, attention__sliding_window=128, attention__sliding_window_pattern=3) == [
        128, 128, None,
    ]  # fmt: skip


def test_a_window_that_the_engine_doesnt_use_doesnt_count() -> None:
    assert windows("phi3", 2, attention__sliding_window=2047) == [None, None]
    assert windows("gemma3", 2) == [None, None]


def test_layers_with_a_window_hold_only_that_unless_all_is_asked_for() -> None:
    model = info("gemma3", **shape(12, 256, 1024, 4, 2, 64), attention__sliding_window=512)
    # Two layers with 65,536 tokens, ten with the window and a batch.
    assert kv(model, tokens=65_536) == (2 * 65_536 + 10 * 1024) * 512
    whole = estimate(model, context_tokens=65_536, slots=1, full_window=True)
    assert whole.kv_cache == 12 * 65_536 * 512
    # In a context smaller than the window there is nothing to save.
    assert kv(model, tokens=256) == 12 * 256 * 512


def test_a_checkpoint_holds_what_cant_be_rewound() -> None:
    model = info("gemma3", **shape(12, 256, 1024, 4, 2, 64), attention__sliding_window=512)
    # As the engine logs it: 2.5 MiB.
    assert estimate(model, context_tokens=8192, slots=4).checkpoint == 10 * 512 * 512
    assert estimate(info(**shape(3, 576, 1536, 9, 3, 64)), context_tokens=8192, slots=4).checkpoint == 0


def test_of_hybrid_models_some_layers_keep_tokens_and_the_others_a_state() -> None:
    ssm = {"ssm__conv_kernel": 4, "ssm__inner_size": 64, "ssm__state_size": 8, "ssm__group_count": 2}
    state = (3 * (64 + 2 * 2 * 8) + 64 * 8) * 4
    kept = shape(4, 64, 128, 4, 2, 16)
    cached = 256 * 2 * (16 + 16) * 2
    by_interval = estimate(info("qwen3next", **kept, **ssm), context_tokens=256, slots=2)
    assert (by_interval.kv_cache, by_interval.recurrent) == (2 * cached, 2 * 3 * state)
    by_heads = info("jamba", **kept | {"attention__head_count_kv": [0, 2, 0, 2]}, **ssm)
    assert estimate(by_heads, context_tokens=256, slots=1).kv_cache == 2 * cached
    assert estimate(by_heads, context_tokens=256, slots=1).recurrent == 2 * state
    both = estimate(info("falcon-h1", **kept, **ssm), context_tokens=256, slots=1)
    assert (both.kv_cache, both.recurrent) == (4 * cached, 4 * state)
    feed_forward_too = kept | {
        "attention__head_count_kv": [0, 2, 0, 0], "feed_forward_length": [0, 0, 128, 0],
    }  # fmt: skip
    assert estimate(info("nemotron_h", **feed_forward_too, **ssm), context_tokens=256, slots=1).recurrent == (
        2 * state
    )


def test_other_recurrent_models_have_states_of_their_own() -> None:
    def states(model: GGUFInfo) -> int:
        return estimate(model, context_tokens=256, slots=1).recurrent

    assert states(info("rwkv7", block_count=2, embedding_length=64, wkv__head_size=16)) == (
        2 * (2 * 64 + 64 * 16) * 4
    )
    lfm2 = shape(2, 64, 128, 4, 2, 16) | {"attention__head_count_kv": [0, 2]}
    assert states(info("lfm2", **lfm2, shortconv__l_cache=3)) == 64 * 2 * 4
    kimi = info("kimi-linear", **lfm2, kda__head_dim=16, ssm__conv_kernel=4)
    assert states(kimi) == (3 * 3 * 64 + 64 * 16) * 4


def test_layers_that_keep_nothing_cost_nothing() -> None:
    assert kv(info("bert", **shape(2, 64, 128, 4, 4, 16))) == 0
    ten = shape(10, 64, 128, 4, 4, 16)
    each = kv(info(**ten)) // 10
    assert kv(info("glm4moe", **ten, nextn_predict_layers=1)) == 9 * each
    assert kv(info("gemma4", **ten, attention__shared_kv_layers=4)) == 6 * each
    assert kv(info("gemma3n", **shape(30, 64, 128, 4, 4, 16))) == 20 * each


def test_a_batch_is_no_larger_than_all_contexts() -> None:
    model = info(**shape(3, 576, 1536, 9, 3, 64))
    small = estimate(model, context_tokens=256, slots=1, ubatch_tokens=2048)
    assert small.compute == estimate(model, context_tokens=256, slots=1, ubatch_tokens=256).compute


def test_what_only_full_contexts_touch_is_known() -> None:
    model = info(**shape(3, 576, 1536, 9, 3, 64))
    memory = estimate(model, context_tokens=8192, slots=1)
    assert memory.only_when_full == 512 * 8192 * 2
    scores = estimate(model, context_tokens=8192, slots=1, flash_attention=False)
    assert scores.only_when_full > 512 * 8192 * 4 * 9
    assert scores.total - scores.only_when_full == pytest.approx(
        memory.total - memory.only_when_full, rel=0.01
    )


def test_a_large_vocabulary_costs_the_process_memory() -> None:
    said = estimate(info(vocab_size=100_000), context_tokens=256, slots=1).process
    assert said - estimate(info(), context_tokens=256, slots=1).process == pytest.approx(40 * MIB, rel=0.1)
    # Where the file doesn't say, its embedding does: 1,000 bytes, of which a word of ten elements takes ten.
    untold = replace(info(tensor_bytes=10_000, embedding_length=10), parameters=10_000)
    told = info(tensor_bytes=10_000, embedding_length=10, vocab_size=100)
    assert estimate(untold, context_tokens=256, slots=1) == estimate(told, context_tokens=256, slots=1)


def test_additions_count() -> None:
    plain, draft = MemoryEstimate(100, 10, 5, process=50), MemoryEstimate(20, 2, 1, process=50)
    both = memory_estimate.with_additions(plain, files_bytes=7, draft=draft)
    assert both.total == plain.total + 7 + 23
    assert memory_estimate.with_additions(plain, files_bytes=0, draft=None) == plain


def test_layers_on_a_gpu_take_its_memory_and_not_the_machines() -> None:
    memory = MemoryEstimate(weights=1000 * MIB, kv_cache=400 * MIB, compute=50 * MIB, process=60 * MIB)
    model = info(tensor_bytes=1000 * MIB, block_count=10)
    assert memory_estimate.on_gpu(memory, model, 0) == (memory.total, 0)
    # Everything but the embedding (a tenth, as is the output), the process, and the drivers.
    assert memory_estimate.on_gpu(memory, model, None) == (
        (100 + 60 + 300) * MIB,
        (900 + 400 + 50 + 400) * MIB,
    )
    half = memory_estimate.on_gpu(memory, model, 5)
    assert half == ((600 + 200 + 60 + 300) * MIB, (400 + 200 + 50 + 400) * MIB)
    # Without an output of its own it has a copy of the embedding there.
    tied = memory_estimate.on_gpu(memory, info(tensor_bytes=1000 * MIB, tied=True, block_count=10), 99)
    assert tied == ((100 + 60 + 300) * MIB, (1000 + 400 + 50 + 400) * MIB)


def test_missing_or_absurd_keys_give_a_number_all_the_same() -> None:
    for keys in (
        {},
        {"block_count": 2**40},
        {"block_count": 2**30, "embedding_length": 2**30, "attention__head_count": 1},
        {"block_count": 3, "attention__head_count_kv": [True, "x", None]},
        {"block_count": 3, "attention__sliding_window": 5, "attention__sliding_window_pattern": ["x", None]},
        {"block_count": 3, "attention__sliding_window": "x", "attention__sliding_window_pattern": -1},
    ):
        for architecture in ("x", "gemma3", "qwen3next", "nemotron_h"):
            assert estimate(info(architecture, **keys), context_tokens=4096, slots=4).total > 0


@pytest.mark.slow
def test_the_estimate_is_near_what_the_engine_takes(engine: Engine, demo_model: Path) -> None:
    taken = psutil.Process(engine.process.pid).memory_info().rss
    memory = estimate(read(demo_model), context_tokens=2048, slots=2)
    # Before its first request it hasn't touched all of its scratch memory.
    assert memory.total - memory.compute < taken * 1.05
    assert taken < memory.total * 1.05
