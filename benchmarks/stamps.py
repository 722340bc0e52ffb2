"""Tokens that say when they were sent: six letters, a number in base 16, in ticks of the machine's monotonic clock.

An answer is a row of rising stamps, so whatever is lost, doubled or moved shows.
"""

import hashlib
import re
import time
from collections.abc import Iterable

_TICKS_PER_S = 50_000
# What 24 bits hold; the clock of a run may pass it once.
_PERIOD = 1 << 24
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
_DIGITS = str.maketrans("abcdefghijklmnop", "0123456789abcdef")
_STAMP = re.compile(r"\b[a-p]{6}\b")


def stamp(at: float) -> str:
    """The token of a moment of `time.monotonic()`."""
    return f"{int(at * _TICKS_PER_S) % _PERIOD:06x}".translate(_LETTERS)


def age_ms(token: str, at: float) -> float:
    """Milliseconds from a token's sending to the moment `at`."""
    return (at * _TICKS_PER_S - int(token.translate(_DIGITS), 16)) % _PERIOD * 1000 / _TICKS_PER_S


def tokens_of(text: str) -> list[str]:
    """The tokens in a text or in HTML."""
    return _STAMP.findall(text)


def digest(tokens: Iterable[str]) -> str:
    """What two copies of one answer have in common, and no others."""
    return hashlib.sha256(" ".join(tokens).encode()).hexdigest()


class Reading:
    """One answer as a reader gets it, and how old each token was when it came."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self._arrivals: list[tuple[float, int]] = []

    def take(self, tokens: list[str]) -> None:
        """Note tokens that have just come."""
        if tokens:
            self.tokens += tokens
            self._arrivals.append((time.monotonic(), len(self.tokens)))

    def delays_ms(self) -> list[float]:
        """Of every token; the first one's is the answer's."""
        delays: list[float] = []
        for at, count in self._arrivals:
            delays += [round(age_ms(token, at), 2) for token in self.tokens[len(delays) : count]]
        return delays

    def report(self) -> dict[str, object]:
        """For the conductor of the benchmark."""
        return {"digest": digest(self.tokens), "delays_ms": self.delays_ms(), "frames": len(self._arrivals)}
