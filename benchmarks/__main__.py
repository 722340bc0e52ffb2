"""`make bench`: every benchmark, one after the other, or the one that is named: `make bench ARGS="memory --all"`."""

import importlib
import subprocess
import sys

_NAMES = ("relay", "gateway", "fairness", "memory")


def _main(arguments: list[str]) -> int:
    if not arguments:
        # Each in a process of its own: none measures what another has left.
        return max(subprocess.call([sys.executable, "-m", "benchmarks", name]) for name in _NAMES)
    name, *rest = arguments
    if name not in _NAMES:
        print(f"Name a benchmark: {' or '.join(_NAMES)}.", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"benchmarks.{name}").main(rest)
    return status


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
