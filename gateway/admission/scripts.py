"""The Lua scripts: each one indivisible step over what all processes share."""

from pathlib import Path

from gateway.valkey import Script

_FOLDER = Path(__file__).with_name("lua")
# Each part uses those before it.
_PARTS = ("memory", "windows", "counters", "replicas", "tickets", "line", "lifetime")
# All that the scripts keep. The number rises with what lies there: after a change a portal begins with an empty memory,
# into which it says again what runs, instead of failing over what another version left.
MEMORY = "llamaproj:gate:2:"
# Before each script.
SHARED = "\n".join(
    [f"local G = '{MEMORY}'", *((_FOLDER / "shared" / f"{part}.lua").read_text() for part in _PARTS)]
)


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
GRANTED = f"{MEMORY}granted:"
