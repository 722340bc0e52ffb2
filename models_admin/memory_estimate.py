"""How much memory a replica will take, from its file's header and how it is launched.

Formulas as llama.cpp allocates; a test compares them with what the embedded engine takes.
"""

from dataclasses import dataclass

from models_admin.gguf_info import GGUFInfo

# Bytes an element takes in the cache, by its type's name.
CACHE_TYPE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
_PROCESS_BYTES = 48 * 2**20
_CELLS = 256
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, by what they are for."""

    weights: int
    kv_cache: int
    compute: int
    process: int = _PROCESS_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.compute + self.process


def estimate(
    info: GGUFInfo,
    *,
    context_tokens: int,
    slots: int,
    ubatch_tokens: int = 512,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
) -> MemoryEstimate:
    """What a replica with `slots` slots of `context_tokens` each takes, on whichever device."""
    return MemoryEstimate(
        weights=info.tensor_bytes,
        kv_cache=_kv_cache(info, context_tokens, slots, ubatch_tokens, cache_type_k, cache_type_v),
        compute=_compute(info, ubatch_tokens, slots),
    )


def _kv_cache(info: GGUFInfo, context_tokens: int, slots: int, ubatch: int, type_k: str, type_v: str) -> int:
    layers = info.number("block_count") or 0
    heads = info.number("attention.head_count") or 1
    width = (info.number("embedding_length") or 0) // heads
    key_length = info.number("attention.key_length_mla") or info.number("attention.key_length") or width
    value_length = info.number("attention.value_length_mla") or info.number("attention.value_length") or width
    heads_kv = info.per_layer("attention.head_count_kv", layers)
    if not any(heads_kv):
        heads_kv = [heads] * layers
    cells = slots * _padded(context_tokens)
    per_head = key_length * CACHE_TYPE_BYTES[type_k] + value_length * CACHE_TYPE_BYTES[type_v]
    window, every = info.number("attention.sliding_window"), info.number("attention.sliding_window_pattern")
    windowed_cells = min(cells, slots * _padded((window or cells) + ubatch)) if window and every else cells
    total = 0.0
    for layer, count in enumerate(heads_kv):
        # One layer in `every` looks at the whole context, the others at their window.
        wide = not every or (layer + 1) % every == 0
        total += (cells if wide else windowed_cells) * count * per_head
    return int(total)


def _compute(info: GGUFInfo, ubatch: int, slots: int) -> int:
    """The scratch memory of one batch: the widest layer's activations, and the logits of each slot."""
    width = info.number("embedding_length") or 0
    feed_forward = info.number("feed_forward_length") or 0
    experts = info.number("expert_used_count") or 0
    if experts:
        feed_forward = max(feed_forward, experts * (info.number("expert_feed_forward_length") or 0))
    activations = ubatch * (4 * feed_forward + 6 * width)
    outputs = slots * ((info.number("vocab_size") or 0) + width)
    return (activations + outputs) * _FLOAT_BYTES


def _padded(tokens: int) -> int:
    return -(-tokens // _CELLS) * _CELLS
