"""A llama-server's slots, as its `GET /slots` lists them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Slot:
    """One slot. What an idle one still holds of its last conversation llama-server doesn't tell."""

    id: int
    is_busy: bool
    context_tokens: int
    used_tokens: int
    written_tokens: int

    @property
    def word(self) -> str:
        """What it is doing."""
        if not self.is_busy:
            return "idle"
        return "writing" if self.written_tokens else "reading"


def of(listed: Iterable[Mapping[str, Any]]) -> list[Slot]:
    """The slots in a listing, in the order of their numbers."""
    slots = [_slot(one) for one in listed]
    return sorted(slots, key=lambda slot: slot.id)


def written_tokens(slot: Mapping[str, Any]) -> int:
    """How much of its present answer a slot has written."""
    tokens = slot.get("next_token")
    if isinstance(tokens, list):  # builds of 2025 give an object, later ones a list of one
        tokens = tokens[0] if tokens else None
    return number(tokens, "n_decoded") if isinstance(tokens, Mapping) else 0


def number(of: Mapping[str, Any], key: str) -> int:
    """A count; 0 for what is none."""
    value = of.get(key)
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0


def _slot(listed: Mapping[str, Any]) -> Slot:
    busy = listed.get("is_processing") is True
    return Slot(
        id=number(listed, "id"),
        is_busy=busy,
        context_tokens=number(listed, "n_ctx"),
        # The prompt's tokens, with those written since.
        used_tokens=number(listed, "n_prompt_tokens") if busy else 0,
        written_tokens=written_tokens(listed) if busy else 0,
    )
