"""What llama-server takes of the machine's memory, against what the portal thought it would.

The engine is launched as the portal launches it, with the demo model, over contexts, slots, types of cache and sizes of
batches; one request makes it touch what it needs. Taken is the peak of its resident memory. Three guesses stand beside
it: the estimate from the file's header alone; that corrected by what launches of other kinds took, one of them or all;
and, for some, corrected by an earlier launch of the same kind. A guess never knows the number it is compared with.
"""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import django
import httpx

from benchmarks.environment import DATA_DIR, free_port

django.setup()

from llamaproj import env  # noqa: E402  # needs Django's settings, like all of ours
from llamaproj.up import demo  # noqa: E402
from models_admin.engine import engine, launch  # noqa: E402
from models_admin.engine.launch_config import LaunchConfig  # noqa: E402
from models_admin.files.gguf_header import read  # noqa: E402
from models_admin.memory.correction import Sight, corrected  # noqa: E402
from models_admin.memory.memory_estimate import MemoryEstimate, estimate  # noqa: E402

_MIB = 2**20
_READY_S = 120
_ANSWER_S = 600
_ANSWER_TOKENS = 8
# A prompt is more than a batch, so that all scratch memory is touched; without flash attention its context is full.
_MORE_TOKENS = 64
# Errors, at most, in shares: what the issue asks for.
_BEFORE, _AFTER = 0.25, 0.10
# Launched twice: the first tells what the second takes.
_TWICE = 3


@dataclass(frozen=True)
class Point:
    """A launch, what was thought of it, and the bytes it took."""

    config: LaunchConfig
    memory: MemoryEstimate
    taken: int

    @property
    def sight(self) -> Sight:
        """What the portal would remember of it."""
        comparable = self.memory.total - self.memory.only_when_full
        return Sight(self.config.memory_key(), comparable, self.taken)

    def error(self, guess: int) -> float:
        """How far the guess is off, as a share of what was taken."""
        return guess / self.taken - 1


def _usual() -> Iterable[LaunchConfig]:
    """Every value of every parameter, in a few minutes."""
    for context, slots, cache, ubatch in (
        (512, 1, "f16", 512), (512, 8, "q8_0", 128), (1024, 2, "f16", 128), (2048, 1, "q8_0", 512),
        (2048, 4, "f16", 512), (4096, 2, "q8_0", 128), (4096, 4, "f16", 512), (8192, 1, "f16", 128),
        (8192, 2, "q8_0", 512), (8192, 8, "f16", 512),
    ):  # fmt: skip
        yield _config(context, slots, cache, ubatch)
    yield LaunchConfig(context_tokens=512, slots=4, flash_attention="off")


def _all() -> Iterable[LaunchConfig]:
    """Every combination."""
    grid = itertools.product((512, 1024, 2048, 4096, 8192), (1, 2, 4, 8), ("f16", "q8_0"), (128, 512))
    for context, slots, cache, ubatch in grid:
        yield _config(context, slots, cache, ubatch)
    yield LaunchConfig(context_tokens=2048, slots=2, flash_attention="off")


def _config(context: int, slots: int, cache: str, ubatch: int) -> LaunchConfig:
    return LaunchConfig(
        context_tokens=context, slots=slots, cache_type_k=cache, cache_type_v=cache, ubatch_tokens=ubatch
    )


def _measure(model: Path, configs: Sequence[LaunchConfig]) -> list[Point]:
    points = []
    for number, config in enumerate(configs, 1):
        print(f"\rlaunch {number} of {len(configs)}", end="", file=sys.stderr, flush=True)
        points.append(_measured(model, config))
    print(file=sys.stderr)
    return points


def _measured(model: Path, config: LaunchConfig) -> Point:
    memory = estimate(
        read(model),
        context_tokens=config.context_tokens,
        slots=config.slots,
        ubatch_tokens=config.ubatch_tokens,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        flash_attention=config.flash_attention != "off",
    )
    port = free_port()
    spec = launch.LaunchSpec(str(model), "bench", "127.0.0.1", port, config)
    with (DATA_DIR / "engine.log").open("wb") as log:
        process = subprocess.Popen(spec.argv(engine.find()), cwd=env.BASE_DIR, stdout=log, stderr=log)
    try:
        _fill(f"http://127.0.0.1:{port}", process, config)
        return Point(config, memory, _peak(process.pid))
    finally:
        process.kill()
        process.wait()


def _fill(url: str, process: "subprocess.Popen[bytes]", config: LaunchConfig) -> None:
    deadline = time.monotonic() + _READY_S
    while not _is_healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError((DATA_DIR / "engine.log").read_text(errors="replace")[-2000:])
        time.sleep(0.1)
    room = config.context_tokens - 2 * _ANSWER_TOKENS
    tokens = room if config.flash_attention == "off" else min(room, config.ubatch_tokens + _MORE_TOKENS)
    body = {"prompt": "word " * tokens, "n_predict": _ANSWER_TOKENS, "ignore_eos": True}
    httpx.post(f"{url}/completion", json=body, timeout=_ANSWER_S).raise_for_status()


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _peak(pid: int) -> int:
    """The most resident memory the process had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Errors:
    """How far each guess is off, as shares; None where there was none."""

    header: float
    one: float
    others: float
    same: float | None


def _errors(point: Point, others: Sequence[Point], again: Point | None) -> Errors:
    key, sights = point.config.memory_key(), [other.sight for other in others]
    return Errors(
        header=point.error(point.memory.total),
        # The smallest: what a portal knows that has been tried out.
        one=point.error(corrected(point.memory, key, [min(sights, key=lambda sight: sight.measured_bytes)])),
        others=point.error(corrected(point.memory, key, sights)),
        same=again.error(corrected(again.memory, key, [*sights, point.sight])) if again else None,
    )


def _print(rows: Sequence[tuple[Point, Errors]]) -> None:
    print(
        f"{'context':>8}{'slots':>6}{'cache':>6}{'ubatch':>7}{'flash':>6}{'taken':>9}{'estimate':>10}"
        f"{'header':>9}{'by one':>9}{'by others':>11}{'by the same':>13}"
    )
    for point, errors in rows:
        config = point.config
        print(
            f"{config.context_tokens:>8}{config.slots:>6}{config.cache_type_k:>6}{config.ubatch_tokens:>7}"
            f"{config.flash_attention:>6}{point.taken / _MIB:9.1f}{point.memory.total / _MIB:10.1f}"
            f"{errors.header:+9.1%}{errors.one:+9.1%}{errors.others:+11.1%}"
            + (f"{errors.same:+13.1%}" if errors.same is not None else f"{'–':>13}")
        )
    for name, share in (("max", max), ("mean", fmean)):
        columns = [
            share(abs(one) for _, errors in rows if (one := getattr(errors, column)) is not None)
            for column in ("header", "one", "others", "same")
        ]
        print(
            f"{name + ' of |error|':>52}{columns[0]:9.1%}{columns[1]:9.1%}{columns[2]:11.1%}{columns[3]:13.1%}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table. Returns 1 when an error is larger than it may be."""
    parser = argparse.ArgumentParser("benchmarks memory", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every combination: many minutes")
    parser.add_argument("--model", type=Path, help="another model than the demo's")
    options = parser.parse_args(arguments)
    # Nothing may stay behind, whoever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    model: Path | None = options.model or demo.install_file(DATA_DIR / "models")
    if model is None:
        print("There is no demo model here; name one with --model.", file=sys.stderr)
        return 1
    try:
        configs = list(_all() if options.all else _usual())
        points = _measure(model, [*configs, *configs[:_TWICE]])
    finally:
        shutil.rmtree(DATA_DIR, ignore_errors=True)
    points, again = points[: len(configs)], points[len(configs) :]
    rows = [
        (point, _errors(point, points[:at] + points[at + 1 :], again[at] if at < len(again) else None))
        for at, point in enumerate(points)
    ]
    print(f"\nMemory of {model.name} in MiB, and how far guesses are off; {os.cpu_count()} CPUs.\n")
    _print(rows)
    before = max(abs(errors.header) for _, errors in rows)
    after = max(abs(one) for _, errors in rows for one in (errors.others, errors.same) if one is not None)
    good = before < _BEFORE and after < _AFTER
    print(
        f"\n{'Within' if good else 'NOT within'} the limits: {_BEFORE:.0%} before correction, {_AFTER:.0%} after."
    )
    return 0 if good else 1
