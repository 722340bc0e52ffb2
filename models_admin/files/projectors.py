"""Which projector (images, sound) belongs to which model: decided by what files in one folder say and are called.

A wrong one keeps a model from starting, so that in doubt there is none.
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

# Words of names that tell copies of one model apart, not models.
_PRECISION = re.compile(
    r"(ud|i?q\d\w*|t?q\d_\d|mxfp4\w*|nvfp4|[bf]f?p?(16|32)|fp8|mmproj|model|ggml|gguf|proj|imat|i1|\d{5}|of)"
)
_WORD = re.compile(r"[^\W_]+(?:_[^\W_]+)*")
# What llama.cpp's own conversion makes is tried most.
_PREFERRED = ("F16", "BF16", "Q8_0", "F32")


@dataclass(frozen=True)
class Candidate(Generic[Key]):
    """A file, as far as pairing needs it. `width`: see `GGUFInfo.width`."""

    key: Key
    path: str
    name: str
    width: int | None
    quantization: str = ""


def paired(models: Iterable[Candidate[Key]], projectors: Iterable[Candidate[Key]]) -> dict[Key, Key]:
    """For each model that has one, its projector: in its folder, of its width, and called like it.

    Where a folder holds one model (in however many precisions), names that have nothing to say don't matter.
    """
    beside: dict[PurePath, list[Candidate[Key]]] = defaultdict(list)
    for projector in projectors:
        beside[PurePath(projector.path).parent].append(projector)
    of_folder: dict[PurePath, list[Candidate[Key]]] = defaultdict(list)
    for model in models:
        of_folder[PurePath(model.path).parent].append(model)
    pairs = {}
    for folder, candidates in beside.items():
        families = {frozenset(_words(PurePath(model.path).stem)) for model in of_folder[folder]}
        for model in of_folder[folder]:
            fitting = [one for one in candidates if _fits(model, one, alone=len(families) == 1)]
            if fitting:
                pairs[model.key] = min(fitting, key=partial(_rank, model)).key
    return pairs


def _fits(model: Candidate[Key], projector: Candidate[Key], *, alone: bool) -> bool:
    if model.width and projector.width and model.width != projector.width:
        return False
    own, others = _own_words(projector), _all_words(model)
    if alone:
        return not own or not others or bool(own & others)
    return bool(own) and own <= others


def _rank(model: Candidate[Key], projector: Candidate[Key]) -> tuple[int, int, str]:
    """The smallest is the best: the name says most of the model, the precision is usual, then the alphabet."""
    own = _own_words(projector)
    known = projector.quantization in _PREFERRED
    usual = _PREFERRED.index(projector.quantization) if known else len(_PREFERRED)
    return -len(own) if own <= _all_words(model) else 1, usual, projector.path


def _own_words(projector: Candidate[Key]) -> set[str]:
    return _words(PurePath(projector.path).stem) or _words(projector.name)


def _all_words(model: Candidate[Key]) -> set[str]:
    return _words(PurePath(model.path).stem) | _words(model.name)


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.lower()) if not _PRECISION.fullmatch(word)}
