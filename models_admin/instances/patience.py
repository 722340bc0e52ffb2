"""How long the states of an instance may last."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long each state may last, in seconds. None: what the model's launch configuration says."""

    start: float | None = None
    load_bytes_per_s: float = 50e6  # added to `start` for large files on slow disks
    silent: float | None = None
    drain: float | None = None
    term: float = 5.0
    ready_long: float = 60.0
    crashes: int = 5
    backoff_first: float = 0.5
    backoff_most: float = 60.0
    backoff_blameless_most: float = 8.0

    def backoff(self, crashes: int, *, its_fault: bool = True) -> float:
        """Doubling with each crash, a quarter more or less, so that replicas don't return in step."""
        most = self.backoff_most if its_fault else self.backoff_blameless_most
        wait = min(most, self.backoff_first * 2.0 ** min(crashes - 1, 30))
        return wait * random.uniform(0.75, 1.25)  # noqa: S311  # no secret
