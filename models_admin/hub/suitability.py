"""Whether a model that isn't here yet would fit on a node, before anybody downloads it. Pure."""

from dataclasses import dataclass, replace
from enum import StrEnum

from models_admin.engine.launch_config import LaunchConfig
from models_admin.files.gguf_info import GGUFInfo
from models_admin.memory.memory_estimate import estimate

_LEAST_CONTEXT = 1024
_STEP = 256
# Of a model of which nothing is known but its size: the usual share of caches and scratch memory.
_ON_TOP = 0.1
_ON_TOP_BYTES = 512 * 2**20


class Verdict(StrEnum):
    """How well it fits."""

    FITS = "fits"
    LESS_CONTEXT = "fits with less context"
    TOO_LARGE = "doesn't fit"


@dataclass(frozen=True)
class Suitability:
    """The verdict, with the context of each slot for which it holds (None where only the size is known)."""

    verdict: Verdict
    needed_bytes: int
    context_tokens: int | None
    from_header: bool


def judge(info: GGUFInfo | None, size_bytes: int, room_bytes: int, config: LaunchConfig) -> Suitability:
    """Whether a model of `size_bytes` fits into `room_bytes` as the portal launches models.

    `info`: the header of any quantisation of it. Less context means one slot, too.
    """
    if info is None:
        needed = int(size_bytes * (1 + _ON_TOP)) + _ON_TOP_BYTES
        return Suitability(Verdict.FITS if needed <= room_bytes else Verdict.TOO_LARGE, needed, None, False)
    info = replace(info, tensor_bytes=size_bytes)
    trained = info.context_tokens or config.context_tokens
    full = min(config.context_tokens, trained)
    needed = _needed(info, full, config.slots, config)
    if needed <= room_bytes:
        return Suitability(Verdict.FITS, needed, full, True)
    least = min(_LEAST_CONTEXT, full)
    if _needed(info, least, 1, config) > room_bytes:
        return Suitability(Verdict.TOO_LARGE, needed, None, True)
    return Suitability(
        Verdict.LESS_CONTEXT, needed, _most_context(info, least, full, room_bytes, config), True
    )


def _most_context(info: GGUFInfo, fits: int, full: int, room_bytes: int, config: LaunchConfig) -> int:
    """The largest context of one slot that fits; `fits` does."""
    low, high = fits // _STEP, full // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        if _needed(info, middle * _STEP, 1, config) <= room_bytes:
            low = middle
        else:
            high = middle - 1
    return max(fits, low * _STEP)


def _needed(info: GGUFInfo, context_tokens: int, slots: int, config: LaunchConfig) -> int:
    memory = estimate(
        info,
        context_tokens=context_tokens,
        slots=slots,
        ubatch_tokens=config.ubatch_tokens,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
    )
    return memory.total + config.prompt_cache_mib * 2**20
