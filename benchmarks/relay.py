"""What it costs to bring tokens from llama-server to watching pages, and how late they come.

The portal (embedded services, one generator, one web process, all as deployed) relays answers of 100 tokens at 50
tokens/s from an upstream that costs next to nothing to pages in a process of their own. Two baselines run on the same
machine in the same minutes: `direct`, where the reader asks the upstream itself and nothing is kept, and `naive`, an
XADD for every token and an XREAD for every reader. The exit status is about text lost or doubled, never about time.
"""

import argparse
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.child import Child, Silent, cpu_s
from benchmarks.environment import DATA_DIR, free_port
from benchmarks.portal import URL, Portal
from benchmarks.stamps import digest, tokens_of

TOKENS = 100
# Answers at once, and how often: a level has to be 2,000 tokens long at least to say something about CPU time. The
# baselines of a single answer are shorter, so that the whole run stays under three minutes.
_REPEATS = {1: (20, 5), 32: (3, 1), 256: (2, 1)}
_WARM_UP = 2
_REST_S = 3.0
# The prototype that the design was chosen by, on a machine like ours (docs/adr/0001-relay.md): CPU seconds per 100,000
# tokens, milliseconds of delay, milliseconds to the first token.
_PROTOTYPE_CPU, _PROTOTYPE_DELAY, _PROTOTYPE_FIRST = 3.9, (20, 38), (0.8, 7.6)

_PARTS = ("writer", "valkey", "reader")
Clock = Callable[[], dict[str, float]]


@dataclass
class Result:
    """One design at one level."""

    design: str
    level: int
    tokens: int = 0
    cpu: Counter[str] = field(default_factory=Counter)
    # Of it, after the last token: the end of the answer is written, announced and shown.
    ending: Counter[str] = field(default_factory=Counter)
    delays_ms: list[float] = field(default_factory=list)
    firsts_ms: list[float] = field(default_factory=list)
    frames: int = 0
    faults: list[str] = field(default_factory=list)

    def per_100k(self, used: Counter[str], name: str) -> float:
        """CPU seconds for 100,000 tokens."""
        return used[name] / self.tokens * 100_000

    def total(self, used: Counter[str]) -> float:
        """CPU seconds for 100,000 tokens of all parts that every design has."""
        return sum(self.per_100k(used, name) for name in _PARTS)


class Stage:
    """The upstream, and what is measured while it writes."""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self._upstream = Child("upstream", str(port), log=DATA_DIR / "logs" / "upstream.log")
        self._upstream.hear("listening")
        self._gates = 0

    def gate(self) -> str:
        """The name of a new gate."""
        self._gates += 1
        return f"gate {self._gates}"

    def play(self, result: Result, gate: str, readers: Child, clock: Clock) -> list[dict[str, str]]:
        """Open the gate and measure from the first token's moment until every reader has read to the end."""
        self._upstream.tell(gate=gate, of=result.level)
        due = self._upstream.hear("due")
        time.sleep(max(0, due - time.monotonic()))
        begin = Counter(clock())
        sent = Counter(self._upstream.hear("ended"))
        last = Counter(clock())
        readers.hear("read")
        end = Counter(clock())
        answers: list[dict[str, str]] = readers.hear("answers")
        end.subtract(begin)
        result.cpu.update(end)
        result.ending.update(end)
        last.subtract(begin)
        result.ending.subtract(last)
        for answer in answers:
            delays = [float(delay) for delay in answer["delays_ms"]]
            result.tokens += len(delays)
            result.delays_ms += delays
            result.firsts_ms += delays[:1]
            result.frames += int(answer["frames"])
        if sent != Counter(answer["digest"] for answer in answers):
            result.faults.append(f"{gate}: what was read isn't what was sent")
        return answers

    def close(self) -> None:
        """End the upstream."""
        self._upstream.end()


def _wish(gate: str) -> str:
    """The message that the upstream understands."""
    return f'{{"gate": "{gate}", "tokens": {TOKENS}}}'


class Relay:
    """The portal's own way."""

    design = "portal"

    def __init__(self, stage: Stage, portal: Portal) -> None:
        from django.test import Client

        from accounts.models import User
        from tests.serving import serve

        self._stage, self._portal = stage, portal
        self._served = serve(stage.url, "key", slug="fast")
        self._user = User.objects.create_user("bench")
        client = Client()
        client.force_login(self._user)
        self._cookie = f"sessionid={client.cookies['sessionid'].value}"
        self._readers: Child | None = None

    def set_up(self, level: int) -> None:
        """Open a page on each of `level` new conversations."""
        from chat.models import Conversation

        self._readers = Child("readers", log=DATA_DIR / "logs" / "readers.log")
        conversations = Conversation.objects.bulk_create(
            Conversation(owner=self._user, served=self._served, title=f"Conversation {number}")
            for number in range(level)
        )
        self._readers.tell(
            do="connect", url=URL, cookie=self._cookie, conversations=[str(one.pk) for one in conversations]
        )
        self._readers.hear("connected")

    def measure(self, result: Result) -> None:
        """One answer on every page; what was read has to be what is kept."""
        from chat.models import Message

        assert self._readers is not None
        gate = self._stage.gate()
        self._readers.tell(do="ask", text=_wish(gate), model=self._served.slug)
        self._readers.hear("asked")
        answers = self._stage.play(result, gate, self._readers, self._clock)
        kept = dict(
            Message.objects.filter(pk__in=[one["message"] for one in answers], status="done").values_list(
                "pk", "text"
            )
        )
        if Counter(one["digest"] for one in answers) != Counter(
            digest(tokens_of(text)) for text in kept.values()
        ):
            result.faults.append(f"{gate}: what was read isn't what was kept")

    def _clock(self) -> dict[str, float]:
        used = self._portal.cpu_s()
        assert self._readers is not None
        return {
            "writer": used["generator"],
            "valkey": used["valkey"],
            "reader": used["web"],
            "postgres": used["postgres"],
            "client": cpu_s(self._readers.pid),
        }

    def tear_down(self) -> None:
        """Close the pages."""
        assert self._readers is not None
        self._readers.end()


class Direct:
    """The reader asks the upstream itself."""

    design = "direct"

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def set_up(self, level: int) -> None:
        """Start the reader."""
        self._readers = Child("readers", log=DATA_DIR / "logs" / "readers.log")

    def measure(self, result: Result) -> None:
        """Read `level` answers at once."""
        gate = self._stage.gate()
        self._readers.tell(do="read", url=self._stage.url, text=_wish(gate), count=result.level)
        self._stage.play(result, gate, self._readers, lambda: {"reader": cpu_s(self._readers.pid)})

    def tear_down(self) -> None:
        """End the reader."""
        self._readers.end()


class Naive:
    """An XADD for every token, an XREAD for every reader."""

    design = "naive"

    def __init__(self, stage: Stage, portal: Portal) -> None:
        from django.conf import settings

        self._stage, self._portal = stage, portal
        self._redis_url = settings.REDIS_URL

    def set_up(self, level: int) -> None:
        """Start writer and reader."""
        log = DATA_DIR / "logs" / "naive.log"
        self._writer, self._reader = (
            Child("naive", role, self._redis_url, log=log) for role in ("writer", "reader")
        )

    def measure(self, result: Result) -> None:
        """Relay `level` answers at once."""
        gate = self._stage.gate()
        order = {"name": gate, "url": self._stage.url, "text": _wish(gate), "count": result.level}
        self._reader.tell(**order)
        self._writer.tell(**order)
        self._stage.play(result, gate, self._reader, self._clock)

    def _clock(self) -> dict[str, float]:
        return {
            "writer": cpu_s(self._writer.pid),
            "valkey": self._portal.cpu_s()["valkey"],
            "reader": cpu_s(self._reader.pid),
        }

    def tear_down(self) -> None:
        """End both."""
        self._writer.end()
        self._reader.end()


def _percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def _run(subject: Relay | Direct | Naive, level: int, repeats: int) -> Result:
    result = Result(subject.design, level)
    subject.set_up(level)
    try:
        # Imports, pools, plans and caches of a first time aren't what is measured.
        for _ in range(_WARM_UP if level == 1 else 0):
            subject.measure(Result(subject.design, level))
        for _ in range(repeats):
            subject.measure(result)
    finally:
        subject.tear_down()
    return result


def _at_rest(portal: Portal) -> str:
    before = Counter(portal.cpu_s())
    time.sleep(_REST_S)
    after = Counter(portal.cpu_s())
    after.subtract(before)
    parts = ", ".join(f"{name} {used / _REST_S * 1000:.1f}" for name, used in after.items())
    return f"At rest, milliseconds of CPU a second: {parts}."


def _print_cpu(results: list[Result]) -> None:
    print("\nCPU seconds per 100,000 tokens, from the first token to the last reader's end;")
    print(
        "`ending` is the part after the last token: the end of an answer is written, recorded, announced and shown"
    )
    print(
        f"{'answers':>7} {'design':<9}{'writer':>8}{'Valkey':>8}{'reader':>8}{'total':>8}{'/direct':>10}{'/naive':>9}"
        f"{'/prototype':>12}{'Postgres':>11}{'client':>9}"
    )
    totals = {(one.design, one.level): one.total(one.cpu) for one in results}
    for one in results:
        row = f"{one.level:>7} {one.design:<9}"
        row += "".join(f"{one.per_100k(one.cpu, name):8.2f}" for name in _PARTS)
        total = one.total(one.cpu)
        row += f"{total:8.2f}"
        for baseline, width in (("direct", 10), ("naive", 9)):
            row += _ratio(total, totals.get((baseline, one.level)), width)
        row += _ratio(total, _PROTOTYPE_CPU, 12)
        if one.design == Relay.design:
            row += f"{one.per_100k(one.cpu, 'postgres'):11.2f}{one.per_100k(one.cpu, 'client'):9.2f}"
        print(row)
        if one.design == Relay.design:
            parts = "".join(f"{one.per_100k(one.ending, name):8.2f}" for name in _PARTS)
            print(f"{'':>7} {'  ending':<9}{parts}{one.total(one.ending):8.2f}")


def _print_delays(results: list[Result]) -> None:
    print("\nMilliseconds from the upstream's write to the reader, of each token and of an answer's first")
    print(
        f"{'answers':>7} {'design':<9}{'p50':>8}{'p99':>8}{'first p50':>11}{'first p99':>11}{'/naive p50':>12}"
        f"{'/prototype p50':>16}{'p99':>8}{'first p50':>11}{'first p99':>11}{'tokens':>9}{'a frame':>9}"
    )
    medians = {(one.design, one.level): _percentile(one.delays_ms, 0.5) for one in results}
    for one in results:
        p50, p99 = (_percentile(one.delays_ms, share) for share in (0.5, 0.99))
        first50, first99 = (_percentile(one.firsts_ms, share) for share in (0.5, 0.99))
        row = f"{one.level:>7} {one.design:<9}{p50:8.1f}{p99:8.1f}{first50:11.1f}{first99:11.1f}"
        row += _ratio(p50, medians.get(("naive", one.level)), 12)
        row += _ratio(p50, _PROTOTYPE_DELAY[0], 16) + _ratio(p99, _PROTOTYPE_DELAY[1], 8)
        row += _ratio(first50, _PROTOTYPE_FIRST[0], 11) + _ratio(first99, _PROTOTYPE_FIRST[1], 11)
        print(row + f"{one.tokens:9}{one.tokens / max(1, one.frames):9.2f}")


def _ratio(value: float, base: float | None, width: int) -> str:
    return f"{value / base:{width - 1}.2f}×" if base else f"{'–':>{width}}"


def _print(results: list[Result], rest: str) -> None:
    print(
        f"{TOKENS}-token answers at 50 tokens/s; Python {platform.python_version()}, {os.cpu_count()} CPUs,",
        end="",
    )
    print(f" load {os.getloadavg()[0]:.1f}. {rest}")
    _print_cpu(results)
    _print_delays(results)
    faults = [f"{one.level} answers, {one.design}: {fault}" for one in results for fault in one.faults]
    good = "Nothing lost, nothing doubled: what was read is what was sent and kept."
    print("\n" + ("\n".join(faults) or good))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the levels and print the tables. Returns 1 when text was lost or doubled."""
    parser = argparse.ArgumentParser("benchmarks relay", description=__doc__)
    parser.add_argument("--levels", default="1,32,256", help="answers at once, separated by commas")
    parser.add_argument("--repeats", type=int, help="instead of each level's own number")
    parser.add_argument("--only-portal", action="store_true", help="without the baselines")
    options = parser.parse_args(arguments)
    levels = [int(level) for level in options.levels.split(",")]
    results: list[Result] = []
    # Nothing may stay behind, whoever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Portal() as portal:
        stage = Stage()
        try:
            relay = Relay(stage, portal)
            others = () if options.only_portal else (Direct(stage), Naive(stage, portal))
            rest = _at_rest(portal)
            for level in levels:
                mine, theirs = _REPEATS.get(level, (1, 1))
                if level == levels[0] != 1:
                    _run(relay, 1, 1)
                results.append(_run(relay, level, options.repeats or mine))
                results += [_run(other, level, options.repeats or theirs) for other in others]
            _print(results, rest)
        except Silent as error:
            print(f"The benchmark broke off: {error}.\n{portal.last_words()}", file=sys.stderr)
            return 1
        finally:
            stage.close()
    return 1 if any(one.faults for one in results) else 0
