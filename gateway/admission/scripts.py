"""The Lua scripts: each one indivisible step over what all processes share."""

from pathlib import Path

from gateway.valkey import Script

_FOLDER = Path(__file__).with_name("lua")
# Each part uses those before it.
_PARTS = ("memory", "windows", "counters", "replicas", "tickets", "line", "lifetime")
# Before each script.
SHARED = "\n".join((_FOLDER / "shared" / f"{part}.lua").read_text() for part in _PARTS)


def _script(name: str) -> Script:
    return Script(f"{SHARED}\n{(_FOLDER / name).read_text()}")


ADMIT = _script("admit.lua")
MOVE = _script("move.lua")
SETTLE = _script("settle.lua")
BEAT = _script("beat.lua")
REPLICAS = _script("replicas.lua")
SEED = _script("seed.lua")
VERSIONS = _script("versions.lua")
USE = _script("use.lua")

# Where a process is told of slots it has been given.
GRANTED = "llamaproj:gate:granted:"
