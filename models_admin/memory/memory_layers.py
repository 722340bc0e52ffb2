"""What each layer of a model keeps of the tokens it has seen, by architecture.

Rules as llama.cpp has them (`src/models/`, `llama-hparams.cpp`, `llama-kv-cache-iswa.cpp`).
A model of an architecture that isn't named here counts as one whose layers all keep the whole context: the most.
"""

from dataclasses import dataclass

from models_admin.files.gguf_info import GGUFInfo

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
_CELLS = 256
_FLOAT_BYTES = 4
# More than any model has; a header may claim what it likes.
_MAX_LAYERS = 1024


@dataclass(frozen=True)
class _Pattern:
    """One layer of every `period` looks at the whole context, the others at a window (of this size unless the file
    says another)."""

    period: int
    whole_first: bool = False
    window: int | None = None


# Of architectures whose files needn't say it. Others with a window in their file don't use it.
_PATTERNS = {
    "afmoe": _Pattern(4),
    "cohere2": _Pattern(4),
    "exaone-moe": _Pattern(4),
    "exaone4": _Pattern(4),
    "gemma2": _Pattern(2, window=4096),
    "gemma3": _Pattern(6),
    "gemma3n": _Pattern(5),
    "gpt-oss": _Pattern(2),
    "llama4": _Pattern(4, window=8192),
    "olmo2": _Pattern(4),
    "plamo3": _Pattern(8),
    "smallthinker": _Pattern(4, whole_first=True, window=4096),
}
# These read a text as a whole and keep nothing.
_KEEP_NOTHING = frozenset(
    (
        "bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada", "llada-moe",
        "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1",
    )
)  # fmt: skip
# One layer of every so many has attention, the others a state, unless the file says another interval.
_ATTENTION_INTERVAL = {"qwen35": 4, "qwen35moe": 4, "qwen3next": 4}
# Every layer has both.
_BOTH = frozenset({"falcon-h1"})
# Layers without attention may be feed-forward layers only.
_SOME_ONLY_FEED_FORWARD = frozenset({"nemotron_h", "nemotron_h_moe"})
# Layers from this one on use what earlier ones keep.
_KEPT_BY_FIRST = {"gemma3n": 20}


@dataclass(frozen=True)
class Layer:
    """What one layer keeps: bytes for each token it can look at, and a state of fixed size for each sequence."""

    token_bytes: float = 0.0
    # Elements of a token's key: how wide the attention works.
    kept_width: int = 0
    # How far it looks back; None: over the whole context.
    window: int | None = None
    state_bytes: int = 0

    def cells(self, context_tokens: int, ubatch_tokens: int) -> int:
        """For how many tokens of one slot it has room."""
        if self.window is None:
            return _padded(context_tokens)
        return _padded(min(_padded(context_tokens), self.window + ubatch_tokens))


def of(info: GGUFInfo, cache_type_k: str, cache_type_v: str) -> list[Layer]:
    """The model's layers. Types of cache that nobody knows count as f16."""
    total = min(info.number("block_count") or 0, _MAX_LAYERS)
    # The last ones may only predict further tokens; nothing is kept for them.
    count = max(0, total - (info.number("nextn_predict_layers") or 0))
    heads = _heads_kv(info, count)
    windows = _windows(info, count)
    stateless = _stateless(info, heads)
    state = _state_floats(info) * _FLOAT_BYTES
    bytes_k, bytes_v = (CACHE_TYPE_BYTES.get(name, 2.0) for name in (cache_type_k, cache_type_v))
    layers = []
    for index in range(count):
        width = heads[index] * key_length(info, windowed=windows[index] is not None)
        layers.append(
            Layer(
                token_bytes=_token_bytes(info, heads[index], windows[index] is not None, bytes_k, bytes_v),
                kept_width=width,
                window=windows[index],
                state_bytes=0 if stateless[index] else state,
            )
        )
    return layers


def key_length(info: GGUFInfo, *, windowed: bool = False) -> int:
    """Elements of one head's key."""
    return _length(info, "key_length", windowed)


def _length(info: GGUFInfo, key: str, windowed: bool) -> int:
    given = info.number(f"attention.{key}_swa") if windowed else None
    width = (info.number("embedding_length") or 0) // (info.number("attention.head_count") or 1)
    return given or info.number(f"attention.{key}") or width


def _token_bytes(info: GGUFInfo, heads: int, windowed: bool, bytes_k: float, bytes_v: float) -> float:
    keys = _length(info, "key_length", windowed)
    if info.number("attention.key_length_mla"):
        # Latent attention keeps one compressed vector, which the values are read from, too.
        indexer = info.number("attention.indexer.key_length") or 0
        return heads * keys * bytes_k + (indexer * bytes_k if heads else 0)
    return heads * (keys * bytes_k + _length(info, "value_length", windowed) * bytes_v)


def _heads_kv(info: GGUFInfo, count: int) -> list[int]:
    """How many heads' keys and values each layer keeps."""
    if info.architecture in _KEEP_NOTHING:
        return [0] * count
    said = f"{info.architecture}.attention.head_count_kv" in info.metadata
    heads = info.per_layer("attention.head_count_kv" if said else "attention.head_count", count)
    if interval := _attention_interval(info):
        heads = [kept if (index + 1) % interval == 0 else 0 for index, kept in enumerate(heads)]
    first = _KEPT_BY_FIRST.get(info.architecture, count)
    if shared := info.number("attention.shared_kv_layers"):
        first = max(0, count - shared)
    return [kept if index < first else 0 for index, kept in enumerate(heads)]


def _windows(info: GGUFInfo, count: int) -> list[int | None]:
    """For each layer how far it looks back; None: over the whole context."""
    given = info.metadata.get(f"{info.architecture}.attention.sliding_window")
    said = info.metadata.get(f"{info.architecture}.attention.sliding_window_pattern")
    known = _PATTERNS.get(info.architecture)
    window = info.number("attention.sliding_window") or (known.window if known and given != 0 else None)
    if window is None:
        return [None] * count
    if isinstance(said, list):
        return [window if index < len(said) and said[index] else None for index in range(count)]
    period = info.number("attention.sliding_window_pattern") or (known.period if known else 1)
    whole = 0 if known and known.whole_first else period - 1
    return [None if index % period == whole else window for index in range(count)]


def _attention_interval(info: GGUFInfo) -> int | None:
    if known := _ATTENTION_INTERVAL.get(info.architecture):
        return info.number("full_attention_interval") or known
    return None


def _stateless(info: GGUFInfo, heads: list[int]) -> list[bool]:
    """For each layer whether it is none of the recurrent ones, should the model have any."""
    if info.number("wkv.head_size") or info.architecture in _BOTH:
        return [False] * len(heads)
    feed_forward = [0] * len(heads)
    if info.architecture in _SOME_ONLY_FEED_FORWARD:
        feed_forward = info.per_layer("feed_forward_length", len(heads))
    return [bool(kept or inner) for kept, inner in zip(heads, feed_forward, strict=True)]


def _state_floats(info: GGUFInfo) -> int:
    """The size of a recurrent layer's state for one sequence; 0 for a model that has none."""
    width = info.number("embedding_length") or 0
    if head := info.number("wkv.head_size"):
        return width * (info.number("token_shift_count") or 2) + width * head
    if cache := info.number("shortconv.l_cache"):
        return width * (cache - 1)
    convolution = (info.number("ssm.conv_kernel") or 1) - 1
    if head := info.number("kda.head_dim"):
        inner = (info.number("attention.head_count") or 0) * head
        return 3 * convolution * inner + inner * head
    inner, state = info.number("ssm.inner_size") or 0, info.number("ssm.state_size") or 0
    groups = info.number("ssm.group_count") or 0
    return convolution * (inner + 2 * groups * state) + inner * state


def _padded(tokens: int) -> int:
    return -(-tokens // _CELLS) * _CELLS
