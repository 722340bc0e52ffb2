"""How much memory a replica will take, from its file's header and how it is launched.

Formulas as llama.cpp allocates; those of the scratch memory were fitted to what the engine logs of made-up models of
many shapes. `make bench ARGS=memory` compares the whole with what the engine really takes.
"""

from dataclasses import dataclass, replace

from models_admin.files.gguf_info import GGUFInfo
from models_admin.memory import memory_layers
from models_admin.memory.memory_layers import Layer

# The program, its libraries and threads; and its tokeniser: tables of words and of merges.
_PROCESS_BYTES = 37 * 2**20
_WORD_BYTES = 420
# What a GPU's driver takes beside the model, on the GPU and of the process's own memory.
_DRIVER_VRAM_BYTES = 400 * 2**20
_DRIVER_RAM_BYTES = 300 * 2**20
_FLOAT_BYTES = 4
_HALF_BYTES = 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, by what they are for."""

    weights: int
    kv_cache: int
    compute: int
    process: int = _PROCESS_BYTES
    # Fixed states of recurrent layers.
    recurrent: int = 0
    # Adapters, projectors and draft models, with all they need.
    additions: int = 0
    # That part of `compute` which is only touched once a context is full.
    only_when_full: int = 0
    # One of the copies that a slot keeps of layers it can't rewind; not in the total.
    checkpoint: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.compute + self.process + self.recurrent + self.additions


def estimate(
    info: GGUFInfo,
    *,
    context_tokens: int,
    slots: int,
    ubatch_tokens: int = 512,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    flash_attention: bool = True,
    full_window: bool = False,
) -> MemoryEstimate:
    """What a replica with `slots` slots of `context_tokens` each takes, on whichever device.

    `full_window`: layers with a sliding window keep the whole context all the same (`--swa-full`).
    """
    layers = memory_layers.of(info, cache_type_k, cache_type_v)
    if full_window:
        layers = [replace(layer, window=None) for layer in layers]
    ubatch = min(ubatch_tokens, context_tokens * slots)
    kept = [layer.cells(context_tokens, ubatch) * layer.token_bytes for layer in layers]
    scratch = _Scratch(info, layers, ubatch, flash_attention)
    compute = scratch.bytes(context_tokens)
    vocabulary = _vocabulary(info)
    logits = slots * vocabulary * _FLOAT_BYTES
    return MemoryEstimate(
        weights=info.tensor_bytes,
        kv_cache=int(slots * sum(kept)),
        # Of one batch; and the logits of each slot, once where they are computed and once where they are read.
        compute=max(compute, logits) + logits,
        process=_PROCESS_BYTES + vocabulary * _WORD_BYTES,
        recurrent=slots * sum(layer.state_bytes for layer in layers),
        only_when_full=compute - scratch.bytes(0),
        checkpoint=int(sum(layer.state_bytes + (layer.window or 0) * layer.token_bytes for layer in layers)),
    )


def with_additions(
    memory: MemoryEstimate, *, files_bytes: int, draft: MemoryEstimate | None
) -> MemoryEstimate:
    """The same with adapters and projectors, and with a draft model that lives in the same process."""
    more = files_bytes + (draft.total - draft.process if draft else 0)
    return replace(memory, additions=memory.additions + more)


def on_gpu(memory: MemoryEstimate, info: GGUFInfo, gpu_layers: int | None) -> tuple[int, int]:
    """Bytes of the machine's memory and of its GPUs' for `gpu_layers` layers there (None: all of them).

    The last layers go first, the output after all of them; the token embedding stays, and a model without an output
    of its own has a copy of it there.
    """
    layers = info.number("block_count") or 1
    there = layers + 1 if gpu_layers is None else min(gpu_layers, layers + 1)
    if not there:
        return memory.total, 0
    share = min(there, layers) / layers
    output = info.embedding_bytes if there > layers else 0
    inner = memory.weights - info.embedding_bytes * (1 if info.tied_output else 2)
    weights = int(max(0, inner) * share) + output
    moved = weights + int((memory.kv_cache + memory.recurrent) * share) + memory.compute + memory.additions
    stays = memory.total - moved + (output if info.tied_output else 0)
    return stays + _DRIVER_RAM_BYTES, moved + _DRIVER_VRAM_BYTES


class _Scratch:
    """The memory that one batch passes through: the largest of its phases, as the engine's allocator packs it."""

    def __init__(self, info: GGUFInfo, layers: list[Layer], ubatch: int, flash_attention: bool) -> None:
        self._layers = layers
        self._ubatch = ubatch
        self._flash = flash_attention
        self._width = info.number("embedding_length") or 0
        self._feed_forward = _feed_forward(info)
        self._inner = info.number("ssm.inner_size") or 0
        self._heads = info.number("attention.head_count") or 0
        self._query = self._heads * memory_layers.key_length(info)
        self._kept = max((layer.kept_width for layer in layers), default=0)

    def bytes(self, context_tokens: int) -> int:
        """With so many tokens in the batch's context."""
        full, windowed = self._cells(context_tokens)
        # What each token may look at, once for each kind of layer.
        masks = (full + windowed) * (_HALF_BYTES if self._flash else _FLOAT_BYTES)
        width, query, kept = self._width, self._query, self._kept
        if self._flash:
            attention = 2 * query + 4 * kept + width
        else:
            # The scores of every head with every token of the context.
            attention = 2 * query + 2 * kept + 5 * width + self._heads * max(full, windowed)
        feed_forward = 3 * self._feed_forward + 5 * width
        recurrent = 6 * self._inner + 3 * width if self._inner else 0
        return self._ubatch * (max(attention, feed_forward, recurrent) * _FLOAT_BYTES + masks)

    def _cells(self, context_tokens: int) -> tuple[int, int]:
        """How many tokens layers of either kind look at; 0 where there is none of the kind."""
        sizes = {
            windowed: max(
                (
                    layer.cells(context_tokens, self._ubatch)
                    for layer in self._layers
                    if layer.token_bytes and (layer.window is not None) == windowed
                ),
                default=0,
            )
            for windowed in (False, True)
        }
        return sizes[False], sizes[True]


def _feed_forward(info: GGUFInfo) -> int:
    """The widest inner layer a token passes: of a mixture of experts those that are used, together."""
    expert = info.number("expert_feed_forward_length") or 0
    shared = info.number("expert_shared_feed_forward_length") or 0
    return max(
        info.number("feed_forward_length") or 0, (info.number("expert_used_count") or 0) * expert, shared
    )


def _vocabulary(info: GGUFInfo) -> int:
    """How many words the model knows. Where the file doesn't say, its embedding's size does, roughly."""
    if known := info.number("vocab_size"):
        return known
    width = info.number("embedding_length")
    if not width or not info.parameters:
        return 0
    bytes_each = info.tensor_bytes / info.parameters
    return int(info.embedding_bytes / (width * bytes_each)) if bytes_each else 0
