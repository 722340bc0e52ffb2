"""The slots of a replica in Valkey: each given once, none forgotten, one's own first."""

import json
import random
import secrets

import pytest
from django_redis import get_redis_connection

from gateway.admission import scripts

SLOTS = 4


class Slots:
    """A model with one replica, asked by its scripts."""

    def __init__(self) -> None:
        self.valkey, self.model = get_redis_connection(), secrets.token_hex(6)
        self.replica = f"replica-{self.model}"
        self.valkey.set(f"{scripts.MEMORY}epoch", 1)
        self.valkey.set("llamaproj:version:catalog", self.model)
        place = {"id": self.replica, "own": True, "slots": SLOTS, "kv": 0, "context": 0, "strict": True}
        self.run(scripts.REPLICAS, self.model, self.model, json.dumps([place]))
        self.made = 0

    def run(self, script, *arguments, keys=()):
        return self.valkey.eval(script.text, len(keys), *keys, *arguments)

    def enter(self, person: str, *, forced: tuple[str, int] = ("wait", -1)) -> tuple[str, bytes, int, bool]:
        """The new ticket, what became of it, its slot, and whether that may be a stranger's."""
        self.made += 1
        ticket = f"{self.model}-{self.made}"
        who = (self.model, person, 1, 1)
        what = (10, 10, 20, "", "", 1000, 0, forced[0], self.replica, forced[1], 0, 0)
        kind, _, slot, strange = self.run(scripts.ADMIT, ticket, self.model, "", "", "", *who, *what)[:4]
        return ticket, kind, slot, bool(strange)

    def leave(self, ticket: str) -> None:
        self.run(scripts.SETTLE, ticket, 10, 10, "ok", "", 1, keys=("unused", "r"))


@pytest.mark.parametrize("seed", range(3))
def test_whoever_comes_and_goes_each_slot_is_one_persons(seed):
    chance, slots = random.Random(seed), Slots()
    running: dict[str, int] = {}
    last: dict[int, str] = {}
    for _ in range(150):
        if len(running) < SLOTS and (not running or chance.random() < 0.5):
            person = chance.choice("abcdef")
            ticket, kind, slot, strange = slots.enter(person)
            assert kind == b"run"
            assert slot in range(SLOTS)
            assert slot not in running.values()
            assert strange or last[slot] == person
            running[ticket], last[slot] = slot, person
        else:
            ticket = chance.choice(sorted(running))
            slots.leave(ticket)
            del running[ticket]


def test_one_comes_back_to_ones_own_slot_and_a_stranger_gets_the_coldest():
    slots = Slots()
    tickets = {person: slots.enter(person)[0] for person in "abcd"}
    for person in "cabd":
        slots.leave(tickets[person])
    assert slots.enter("d")[2:] == (3, False)
    assert slots.enter("e")[2:] == (2, True)
    assert slots.enter("a")[2:] == (0, False)


def test_a_memory_that_was_emptied_gives_nobody_a_slot_in_use():
    slots = Slots()
    taken = slots.enter("a", forced=("run", 2))
    found = [slots.enter(person)[2] for person in "bcd"]
    assert sorted([2, *found]) == [0, 1, 2, 3]
    slots.leave(taken[0])
    assert slots.enter("e")[2:] == (2, True)
