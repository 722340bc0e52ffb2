"""The fair line: the paper's bound, weights, no starvation; and that Valkey's script keeps the same order."""

import random
import secrets

import pytest
from django_redis import get_redis_connection
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.admission import scripts
from gateway.fair_queue import BATCH, BATCH_EVERY, COMPLETION_WEIGHT, INTERACTIVE, FairQueue, Request

_LONGEST_PROMPT, _LONGEST_ANSWER, _SLOTS = 200, 100, 3

lengths = st.tuples(st.integers(1, _LONGEST_PROMPT), st.integers(1, _LONGEST_ANSWER))


def simulate(queue: FairQueue, requests: list[tuple[Request, int]], steps: int) -> dict[str, list[float]]:
    """Serve with a few slots, a token a step and slot; the service each person has got by each step."""
    for request, _ in requests:
        queue.arrive(request)
    answers = {request.id: length for request, length in requests}
    running: dict[str, tuple[Request, int]] = {}
    got: dict[str, float] = {request.person: 0.0 for request, _ in requests}
    history: dict[str, list[float]] = {person: [] for person in got}
    for _ in range(steps):
        while len(running) < _SLOTS and (following := queue.serve()):
            running[following.id] = following, 0
            got[following.person] += following.prompt_tokens
        for id_, (request, written) in list(running.items()):
            queue.write(request, written + 1)
            got[request.person] += COMPLETION_WEIGHT
            running[id_] = request, written + 1
            if written + 1 == answers[id_]:
                del running[id_]
        for person, line in history.items():
            line.append(got[person])
    return history


def load(person: str, sizes: list[tuple[int, int]], **more: int) -> list[tuple[Request, int]]:
    return [
        (Request(f"{person}-{i}", person, prompt, **more), answer) for i, (prompt, answer) in enumerate(sizes)
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(lengths, min_size=3, max_size=12), st.lists(lengths, min_size=3, max_size=12))
def test_two_who_always_wait_get_the_same_within_the_papers_bound(ones, others):
    # More than can be served, so that both wait all the time.
    requests = load("a", ones * 300) + load("b", others * 300)

    history = simulate(FairQueue(), requests, steps=300)

    pool = _SLOTS * _LONGEST_ANSWER
    bound = 2 * max(_LONGEST_PROMPT, COMPLETION_WEIGHT * pool)
    assert all(abs(a - b) <= bound for a, b in zip(history["a"], history["b"], strict=True))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.lists(lengths, min_size=4, max_size=8))
def test_weights_are_shares(weight, sizes):
    requests = load("a", sizes * 750) + load("b", sizes * 750, weight=weight)

    history = simulate(FairQueue(), requests, steps=1000)

    bound = 2 * max(_LONGEST_PROMPT, COMPLETION_WEIGHT * _SLOTS * _LONGEST_ANSWER)
    assert abs(history["b"][-1] / weight - history["a"][-1]) <= bound


def test_who_comes_anew_has_saved_nothing_up():
    queue = FairQueue()
    for request, _ in load("old", [(100, 1)] * 50):
        queue.arrive(request)
    for _ in range(20):
        queue.serve()

    for request, _ in load("new", [(100, 1)] * 50):
        queue.arrive(request)
    served = [queue.serve() for _ in range(20)]

    assert sorted(one.person for one in served if one).count("new") == 10


def test_programs_nobody_waits_for_come_last_and_come():
    queue = FairQueue()
    for request, _ in load("chat", [(1, 1)] * 30) + load("batch", [(1, 1)] * 5, queue_class=BATCH):
        queue.arrive(request)

    order = [served.queue_class for _ in range(2 * (BATCH_EVERY + 1)) if (served := queue.serve())]

    assert order == ([INTERACTIVE] * BATCH_EVERY + [BATCH]) * 2


class Valkeys:
    """The same line in Valkey, with one slot."""

    def __init__(self, model: str) -> None:
        self.valkey, self.model = get_redis_connection(), model
        self.slot = f"slot-{model}"
        self.valkey.set(f"{scripts.MEMORY}epoch", 1)
        self.valkey.set("llamaproj:version:catalog", model)
        place = f'[{{"id":"{self.slot}","own":true,"slots":1,"kv":0,"context":0,"strict":false}}]'
        self.run(scripts.REPLICAS, model, model, place)

    def run(self, script, *arguments):
        return self.valkey.eval(script.text, 0, *arguments)

    def arrive(self, request: Request) -> bytes:
        fixed = (request.prompt_tokens, 0, 0, "", "", 1000, 0, "wait", "", -1, 0, 0)
        who = (self.model, request.person, request.weight, request.queue_class)
        return self.run(scripts.ADMIT, request.id, f"p{self.model}", "", "", "", *who, *fixed)[0]

    def runs(self) -> str | None:
        found = self.valkey.hget(f"{scripts.MEMORY}r:{self.slot}", "s0")
        return found.decode() if found else None

    def end(self, request: Request, completion_tokens: int) -> None:
        keys = ("unused", "r")
        self.valkey.eval(
            scripts.SETTLE.text, 2, *keys, request.id, request.prompt_tokens, completion_tokens, "ok", "", 1
        )


@pytest.mark.parametrize("seed", range(4))
def test_valkey_keeps_the_models_order(seed):
    chance = random.Random(seed)
    mine, theirs = FairQueue(), Valkeys(secrets.token_hex(6))
    running: Request | None = None
    waiting: dict[str, Request] = {}
    for step in range(120):
        if chance.random() < 0.6 or running is None:
            request = Request(
                f"{theirs.model}-{step}",
                chance.choice("abcd"),
                chance.randint(1, 50),
                weight=chance.choice((1, 2)) if step % 7 else 1,
                queue_class=chance.choice((INTERACTIVE, INTERACTIVE, BATCH)),
            )
            theirs.arrive(request)
            mine.arrive(request)
            waiting[request.id] = request
        elif chance.random() < 0.2 and waiting:
            gone = waiting.pop(chance.choice(sorted(waiting)))
            mine.leave(gone)
            theirs.end(gone, 0)
        else:
            written = chance.randint(0, 30)
            mine.write(running, written)
            theirs.end(running, written)
            running = None
        if running is None and (running := mine.serve()):
            waiting.pop(running.id)
        assert theirs.runs() == (running.id if running else None)
