"""What the gateway adds to a stream: the portal against asking directly, a bare pipe, and LiteLLM's proxy.

All four over the same fast upstream in the same run: the portal is the web process as deployed, with key, limits,
queue, routing, usage records and metrics, over the embedded PostgreSQL and Valkey. Where there are two processors the
gateway has one for itself; upstream, clients and services share the other. Upstream and clients are C programs. The
pipe passes bytes on and does nothing else: what lies below it, Python can't reach.

The exit status is about answers that failed, never about time.
"""

import argparse
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.environment import PORT
from benchmarks.figures import DIRECT, LITELLM, PIPE, PORTAL, Figures, table
from benchmarks.litellm import LiteLLM, NotToBeHad
from benchmarks.native import Clients, NoCompiler, Report, Upstream
from benchmarks.pipe import Pipe
from benchmarks.portal import Portal

# Replicas as large as the portal makes them: few streams go to a model with one, many to one with enough for all.
_REPLICAS, _SLOTS = 18, 64
_FEW, _MANY = "fast", "crowd"
_SLOT_TOKENS = 1_000_000
# Enough to count, never enough to refuse.
_PLENTY = 1_000_000_000
_SETTLE_S = 0.5
_LOOK_EVERY_S = 0.02
_KIB, _MIB = 1024, 1024 * 1024


class Gateway(Protocol):
    """What stands between clients and upstream."""

    name: str
    port: int
    key: str

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far: `web`, and other processes that work for it."""

    def pids(self) -> list[int]:
        """The processes whose memory counts."""


@dataclass
class Direct:
    """Nothing stands between."""

    port: int
    name: str = DIRECT
    key: str = "key"

    def cpu_s(self) -> dict[str, float]:
        """Nobody's."""
        return {"web": 0.0}

    def pids(self) -> list[int]:
        """Nobody's."""
        return []


class Bare:
    """A pipe of bytes."""

    name, key = PIPE, "key"

    def __init__(self, pipe: Pipe) -> None:
        self.port = pipe.port
        self.cpu_s, self.pids = pipe.cpu_s, pipe.pids


class Ours:
    """The portal's web process, with models whose replicas are the upstream."""

    name, port = PORTAL, PORT

    def __init__(self, portal: Portal, upstream: Upstream) -> None:
        from accounts.key_actions import create_api_key
        from accounts.models import User
        from gateway.models import Limit
        from models_admin.engine import launch_config
        from tests.serving import add_replica, serve

        self._portal = portal
        few, many = serve(upstream.urls[0], "key", slug=_FEW), serve(upstream.urls[1], "key", slug=_MANY)
        for url in upstream.urls[2:]:
            add_replica(many, url, "key")
        for served in (few, many):
            served.slots, served.context_tokens, served.enabled = _SLOTS, _SLOT_TOKENS, True
            served.save()
            served.instances.update(launched=launch_config.of(served).snapshot())
        user = User.objects.create_user("bench")
        row, self.key = create_api_key(user=user, name="bench", by=None)
        for subject in ({"user": user}, {"api_key": row}, {"served": few}, {"served": many}):
            Limit.objects.create(
                **subject,
                requests_per_minute=_PLENTY,
                completion_tokens_per_day=_PLENTY,
                concurrent_requests=_PLENTY,
            )

    def cpu_s(self) -> dict[str, float]:
        """Its own and the services'."""
        return self._portal.cpu_s()

    def pids(self) -> list[int]:
        """The web process."""
        return [self._portal.pid("web")]


class Theirs:
    """LiteLLM's proxy."""

    name = LITELLM

    def __init__(self, proxy: LiteLLM) -> None:
        self._proxy = proxy
        self.port, self.key = proxy.port, proxy.key
        self.cpu_s, self.pids = proxy.cpu_s, proxy.pids


class Stage:
    """Upstream and clients, and what is measured with them."""

    def __init__(self, upstream: Upstream, figures: Figures, brief: bool) -> None:
        self.upstream, self.figures = upstream, figures
        self._clients = Clients()
        self._brief = brief

    def _run(
        self, gateway: Gateway, wish: Mapping[str, int], when_streaming: Callable[[], None] = lambda: None
    ) -> Report:
        model = _FEW if wish.get("streams", 1) <= _SLOTS else _MANY
        report = self._clients.run(gateway.port, gateway.key, model, wish, when_streaming)
        if report.failed:
            self.figures.faults.append(f"{gateway.name}, {wish}: {report.failed} failed, {report.complaint}")
        return report

    def _cpu(self, gateway: Gateway, level: int, wish: Mapping[str, int]) -> Report:
        before = gateway.cpu_s()
        report = self._run(gateway, wish)
        after = gateway.cpu_s()
        if before != after:
            used = {name: (after[name] - before[name]) / max(1, report.chunks) * 100_000 for name in after}
            self.figures.note(gateway.name, **{f"cpu_{level}": used.pop("web")})
            if used:
                self.figures.note(gateway.name, **{f"services_{level}": sum(used.values())})
        p50, p99, _ = report.delay_ms
        self.figures.note(gateway.name, **{f"delay_{level}_p50": p50, f"delay_{level}_p99": p99})
        return report

    def warm_up(self, gateway: Gateway) -> None:
        """Imports, pools, plans and caches of a first time aren't what is measured."""
        self._run(gateway, {"requests": 20, "tokens": 4})
        self._run(gateway, {"streams": 32, "requests": 3, "tokens": 20})

    def first(self, gateway: Gateway) -> None:
        """The first token of a lone stream."""
        p50, p99, _ = self._run(gateway, {"requests": 100, "tokens": 4}).first_ms
        self.figures.note(gateway.name, first_1_p50=p50, first_1_p99=p99)

    def first_among(self, gateway: Gateway) -> None:
        """The first token where 32 stream, each for three seconds before it asks again."""
        requests = 1 if self._brief else 3
        wish = {"streams": 32, "requests": requests, "tokens": 60, "pace": 50_000, "ramp": 94_000}
        p50, p99, _ = self._run(gateway, wish).first_ms
        self.figures.note(gateway.name, first_32_p50=p50, first_32_p99=p99)

    def rate(self, gateway: Gateway) -> None:
        """As fast as it goes."""
        report = self._run(gateway, {"streams": 32, "tokens": 300})
        self.figures.note(gateway.name, rate=report.chunks / report.wall_s)

    def equal(self, gateway: Gateway) -> None:
        """32 streams of equal length."""
        tokens = 100 if self._brief else 250
        self._cpu(gateway, 32, {"streams": 32, "tokens": tokens, "pace": 40_000, "ramp": 1250})

    def many(self, gateway: Gateway) -> None:
        """256 streams of 50/s. LiteLLM can't follow: it gets a part, so that the run ends."""
        tokens = 40 if gateway.name == LITELLM else 150 if self._brief else 500
        wish = {"streams": 256, "tokens": tokens, "pace": 20_000, "ramp": 4000, "limit": 90_000}
        self._cpu(gateway, 256, wish)

    def very_many(self, gateway: Gateway) -> None:
        """1,000 streams of 20/s."""
        wish = {"streams": 1000, "tokens": 100 if self._brief else 200, "pace": 50_000, "ramp": 4000}
        report = self._cpu(gateway, 1000, wish)
        self.figures.note(gateway.name, failed_1000=report.failed)

    def memory(self, gateway: Gateway) -> None:
        """What the processes grow by for each open stream."""
        streams, grown = 250, 0
        before = _resident(gateway)

        def look() -> None:
            nonlocal grown
            grown = _resident(gateway) - before

        self._run(gateway, {"streams": streams, "tokens": 5, "pace": 1_000_000, "ramp": 4000}, look)
        self.figures.note(gateway.name, memory=grown / streams / _KIB)

    def stall(self, gateway: Gateway) -> None:
        """A client stops reading an answer of some 50 MB, which comes as fast as it is taken."""
        before, most = _resident(gateway), 0
        ended = threading.Event()

        def watch() -> None:
            nonlocal most
            while not ended.wait(_LOOK_EVERY_S):
                most = max(most, _resident(gateway))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            self._run(gateway, {"tokens": 200_000, "stall": 3000})
        finally:
            ended.set()
            watcher.join()
        self.figures.note(gateway.name, stall=(most - before) / _MIB)

    def vanish(self, gateway: Gateway) -> None:
        """Clients close their connection between two tokens that are four seconds apart."""
        already = self.upstream.gone().keys()
        wish = {"streams": 4, "requests": 5, "tokens": 50, "pace": 4_000_000, "leave": 30_000, "ramp": 7000}
        left = self._run(gateway, wish).left
        time.sleep(_SETTLE_S)
        gone = self.upstream.gone()
        late = sorted((gone[tag] - at) / 1e6 for tag, at in left.items() if tag in gone.keys() - already)
        if len(late) < len(left):
            missing = len(left) - len(late)
            self.figures.faults.append(f"{gateway.name}: {missing} vanished clients weren't noticed upstream")
        if late:
            self.figures.note(gateway.name, gone_p50=late[len(late) // 2], gone_most=late[-1])


def _resident(gateway: Gateway) -> int:
    """Resident memory in bytes."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in gateway.pids()]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def _pin(pids: Sequence[int], core: int) -> None:
    """Confine processes and their threads to one processor."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def _proxy(upstream: Upstream, core: int | None, wanted: bool) -> Iterator[Theirs | None]:
    """LiteLLM's proxy, or nothing, said loudly."""
    if not wanted:
        yield None
        return
    try:
        proxy = LiteLLM(upstream.url, (_FEW, _MANY))
        proxy.__enter__()
    except NotToBeHad as error:
        print(f"\n*** WITHOUT LiteLLM, whose column stays empty: {error} ***\n", file=sys.stderr)
        yield None
        return
    try:
        if core is not None:
            _pin(proxy.pids(), core)
        yield Theirs(proxy)
    finally:
        proxy.__exit__()


_ONCE = ("memory", "first_among", "equal", "vanish", "stall")
_REPEATED = ("first", "rate", "many", "very_many")
# What makes no sense, or no end, for whom.
_NO_GATEWAYS = frozenset({DIRECT, PIPE})
_NOT_FOR = {
    "memory": _NO_GATEWAYS,
    "vanish": _NO_GATEWAYS,
    "stall": _NO_GATEWAYS,
    "equal": frozenset({PIPE}),
    "first_among": frozenset({PIPE}),
    "very_many": frozenset({LITELLM}),
}


@contextmanager
def _alone(gateway: Gateway, gateways: Sequence[Gateway]) -> Iterator[None]:
    """The others are halted: what they still have to do of their own measure isn't this one's burden.

    This one was halted until now: what its clocks have put off is done before it is measured.
    """
    others = [pid for other in gateways if other is not gateway for pid in other.pids()]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(_SETTLE_S)
    try:
        yield
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)


def _measure(stage: Stage, gateways: Sequence[Gateway], repeats: int, only: Sequence[str]) -> None:
    for gateway in gateways:
        stage.warm_up(gateway)
    for names, times in ((_ONCE, 1), (_REPEATED, repeats)):
        for repeat in range(times):
            for name in names:
                if only and name not in only:
                    continue
                for gateway in gateways:
                    tired = name == "many" and repeat and gateway.name == LITELLM
                    if not tired and gateway.name not in _NOT_FOR.get(name, ()):
                        with _alone(gateway, gateways):
                            getattr(stage, name)(gateway)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table. Returns 1 when an answer of the portal failed."""
    parser = argparse.ArgumentParser("benchmarks gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute: shorter, once, without LiteLLM")
    parser.add_argument("--without-litellm", action="store_true", help="nothing is installed")
    parser.add_argument("--repeats", type=int, default=3, help="of what is short enough; the median counts")
    parser.add_argument("--only", default="", help=f"some of {','.join((*_ONCE, *_REPEATED))}")
    options = parser.parse_args(arguments)
    # Nothing may stay behind, whoever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cores = sorted(os.sched_getaffinity(0))
    core = cores[0] if len(cores) > 1 else None
    if core is not None:
        # All that is started from here on is not where the gateway is.
        os.sched_setaffinity(0, set(cores[1:]))
    figures, began = Figures(), time.monotonic()
    load = os.getloadavg()[0]
    wanted = not (options.quick or options.without_litellm)
    with Portal("web") as portal:
        try:
            with (
                Upstream(_REPLICAS) as upstream,
                Pipe(upstream.port) as pipe,
                _proxy(upstream, core, wanted) as theirs,
            ):
                ours = Ours(portal, upstream)
                if core is not None:
                    _pin([*ours.pids(), *pipe.pids()], core)
                gateways: list[Gateway] = [
                    Direct(upstream.port),
                    Bare(pipe),
                    ours,
                    *([theirs] if theirs else []),
                ]
                stage = Stage(upstream, figures, options.quick)
                repeats = 1 if options.quick else options.repeats
                _measure(stage, gateways, repeats, options.only.split(",") if options.only else ())
        except NoCompiler as error:
            print(error, file=sys.stderr)
            return 2
        if any(fault.startswith(PORTAL) for fault in figures.faults):
            print(portal.last_words(), file=sys.stderr)
    print(
        f"The gateway; Python {platform.python_version()}, {len(cores)} CPUs, load {load:.1f} before and"
        f" {os.getloadavg()[0]:.1f} after, {time.monotonic() - began:.0f} s.\n"
    )
    print(table(figures))
    return 1 if any(fault.startswith(PORTAL) for fault in figures.faults) else 0
