"""`llamaproj node`: a node worker alone, on a machine that joins a portal elsewhere.

It joins by knowing what the portal knows: DATABASE_URL, REDIS_URL and SECRET_KEY. A token would add nothing: whoever
has these three is the portal.
"""

import asyncio
import sys
import time

from llamaproj import env
from llamaproj.up import node_address, preflight, processes, stopping
from llamaproj.up.errors import StartError
from llamaproj.up.leftovers import Record
from llamaproj.up.models import stop_models
from llamaproj.up.supervisor import Output, Supervisor

_JOINED_S = 60
_POLL_S = 0.25


def main() -> int:
    """The command `node`: work for the portal until Ctrl-C or SIGTERM. Returns the exit status."""
    try:
        _check_given()
        preflight.make_folders()
        # Held until this process ends, however it ends.
        preflight.lock_data_dir()
        record = Record(env.DATA_DIR / "run" / "processes.json")
        record.end_running()
        preflight.check_engine()
        preflight.check_services()
        asyncio.run(_Launcher(record, node_address.find()).run())
    except StartError as error:
        sys.stderr.write(f"llamaproj: {error}\n")
        return 1
    return 0


def _check_given() -> None:
    """Refuse to make a portal's services or secrets here: a node uses those that exist."""
    missing = [
        name
        for name, given in (
            ("DATABASE_URL", env.outside_database()),
            ("REDIS_URL", env.outside_redis()),
            ("SECRET_KEY", env.has_secret_key()),
        )
        if not given
    ]
    if missing:
        raise StartError(f"A node needs what its portal has: set {', '.join(missing)} to the portal's.")


class _Launcher:
    """One run of the node."""

    def __init__(self, record: Record, address: str) -> None:
        self._address = address
        self._output = Output()
        self._supervisor = Supervisor(record=record, output=self._output)
        self._signals = stopping.StopSignals()
        self._joined = False

    async def run(self) -> None:
        """Start, wait for a signal, stop. Raises `StartError` after stopping what was started."""
        await stopping.run(self._start, self._stop, self._signals)

    async def _start(self) -> None:
        began = time.monotonic()
        from llamaproj.up import portal

        portal.load()
        await asyncio.to_thread(portal.check_joining)
        self._joined = True
        await self._supervisor.start(processes.node(self._address))
        while not await asyncio.to_thread(portal.has_joined):
            if time.monotonic() - began > _JOINED_S:
                raise StartError(
                    f"The worker didn't announce itself within {_JOINED_S} s; see the lines above."
                )
            await asyncio.sleep(_POLL_S)
        self._output.say(
            f"\n  {env.NODE_NAME} at {self._address} has joined the portal after {time.monotonic() - began:.1f} s."
            f"\n  Its models come from {':'.join(map(str, env.MODELS_DIRS))}."
            "\n  Ctrl-C stops it and its llama-servers.\n"
        )

    async def _stop(self) -> None:
        if not self._joined:
            return
        self._output.say("Stopping …")
        await self._supervisor.stop(["node"], hurry=self._signals.hurry)
        await stop_models(self._output)
        await self._supervisor.close()
        self._output.say("Stopped.")
