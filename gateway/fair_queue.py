"""The fair order of a busy model's line, as a model without Valkey, Django or a clock.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithm 2, with
weights (section 4.3 there): who got least service, for their weight, is next; a prompt is charged when it begins, what
is written as it is written; who comes anew is lifted to the least of those who wait, so that nobody saves up. What
`admission/lua/shared/` does in Valkey for all processes is this; tests hold the one against the other.

The bound (theorem 4.4): the service of two people who both have requests waiting differs by no more than
2 · max(w_p · longest prompt, w_q · tokens that fit in the pool), for weights of 1.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

PROMPT_WEIGHT = 1
COMPLETION_WEIGHT = 2
RETURNING, INTERACTIVE, BATCH = range(3)
# A class that waits is served once for so many of the classes before it.
BATCH_EVERY = 8


@dataclass
class Request:
    """One request in the line, or being served. `charged` are the completion's tokens that were charged, weighted."""

    id: str
    person: str
    prompt_tokens: int
    weight: int = 1
    queue_class: int = INTERACTIVE
    charged: float = 0.0


@dataclass
class FairQueue:
    """The line of one model and everybody's counter."""

    counters: dict[str, float] = field(default_factory=dict)
    _lines: dict[tuple[int, str], deque[Request]] = field(default_factory=dict)
    _last: str = ""
    _passed: int = 0

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def arrive(self, request: Request) -> None:
        """Join the line. Who had nothing there is lifted first."""
        self.lift(request.person)
        self._lines.setdefault((request.queue_class, request.person), deque()).append(request)

    def lift(self, person: str) -> None:
        """No credit from before: the least of those who wait, or of whoever waited last."""
        if any(name == person for _, name in self._lines):
            return
        waiting = [self.counters.get(name, 0.0) for _, name in self._lines]
        least = min(waiting, default=self.counters.get(self._last, 0.0))
        self.counters[person] = max(self.counters.get(person, 0.0), least)

    def serve(self) -> Request | None:
        """Take the next one out of the line and charge its prompt."""
        for queue_class in self._classes():
            people = [name for found, name in self._lines if found == queue_class]
            if people:
                # As a sorted set has it: by counter, then by name.
                person = min(people, key=lambda name: (self.counters[name], name))
                has_batch = any(found == BATCH for found, _ in self._lines)
                request = self._take(queue_class, person, 0)
                if queue_class == INTERACTIVE and has_batch:
                    self._passed += 1
                elif queue_class == BATCH:
                    self._passed = 0
                self._charge(request, request.prompt_tokens * PROMPT_WEIGHT)
                return request
        return None

    def write(self, request: Request, completion_tokens: int) -> None:
        """So many tokens of the answer have been written by now."""
        weighted = completion_tokens * COMPLETION_WEIGHT
        self._charge(request, weighted - request.charged)
        request.charged = weighted

    def leave(self, request: Request) -> None:
        """Go away from the line."""
        line = self._lines.get((request.queue_class, request.person))
        if line is not None and request in line:
            self._take(request.queue_class, request.person, line.index(request))

    def _charge(self, request: Request, tokens: float) -> None:
        if tokens:
            self.counters[request.person] += tokens / request.weight

    def _take(self, queue_class: int, person: str, place: int) -> Request:
        line = self._lines[queue_class, person]
        request = line[place]
        del line[place]
        if not line:
            del self._lines[queue_class, person]
            if not any(name == person for _, name in self._lines):
                self._last = person
        return request

    def _classes(self) -> Iterator[int]:
        waiting = {queue_class for queue_class, _ in self._lines}
        is_batch_due = {INTERACTIVE, BATCH} <= waiting and self._passed >= BATCH_EVERY
        yield from (RETURNING, BATCH, INTERACTIVE) if is_batch_due else (RETURNING, INTERACTIVE, BATCH)
