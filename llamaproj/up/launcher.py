"""The order of a start and of a stop, and what the person is told."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx

from llamaproj import env
from llamaproj.up import address, node_address, preflight, processes, stopping
from llamaproj.up.errors import StartError
from llamaproj.up.leftovers import Record
from llamaproj.up.models import stop_models
from llamaproj.up.postgres import Postgres
from llamaproj.up.supervisor import Child, Output, Supervisor, end_of_log
from llamaproj.up.valkey import Valkey

_SERVICE_READY_S = 60
_PORTAL_READY_S = 120
_MODEL_READY_S = 30
_POLL_S = 0.05
# Deaths before a service counts as unable to start. PostgreSQL needs several tries when the last processes of a
# killed predecessor still hold its shared memory.
_POSTGRES_TRIES = 5
_VALKEY_TRIES = 2
# Programs of one group stop together, group after group.
_STOP_FIRST = (("web", "generator"), ("worker", "beat", "node"))
_STOP_LAST = ("valkey", "postgres")


def main() -> int:
    """The command `up`: run the portal until Ctrl-C or SIGTERM. Returns the exit status."""
    try:
        record = _preflight()
        asyncio.run(_Launcher(record).run())
    except StartError as error:
        sys.stderr.write(f"llamaproj: {error}\n")
        return 1
    return 0


def _preflight() -> Record:
    """Everything that can be refused before anything is started."""
    preflight.make_folders()
    # Held until this process ends, however it ends.
    preflight.lock_data_dir()
    record = Record(env.DATA_DIR / "run" / "processes.json")
    record.end_running()
    preflight.check_port()
    preflight.check_asgi_server()
    preflight.check_engine()
    preflight.check_services()
    node_address.check()
    return record


class _Launcher:
    """One run of the portal."""

    def __init__(self, record: Record) -> None:
        self._began = time.monotonic()
        self._output = Output()
        self._supervisor = Supervisor(record=record, output=self._output)
        self._signals = stopping.StopSignals()
        self._models_may_run = False
        self._password_to_say: str | None = None

    async def run(self) -> None:
        """Start, wait for a signal, stop. Raises `StartError` after stopping what was started."""
        await stopping.run(self._start, self._stop, self._signals)

    async def _start(self) -> None:
        await self._start_services()
        from llamaproj.up import portal

        prepared = await asyncio.to_thread(portal.prepare)
        if prepared.migrations:
            self._output.say(f"The database is up to date ({prepared.migrations} migrations).")
        self._password_to_say = prepared.admin_password
        self._models_may_run = True
        first, later = processes.first(), processes.later()
        for program in first:
            await self._supervisor.start(program)
        async with httpx.AsyncClient(
            base_url=address.base_url(), headers={"host": address.known_name()}, timeout=5
        ) as client:
            await self._until_ready(client, "/healthz")
            for program in later:
                await self._supervisor.start(program)
            await self._until_ready(client, "/readyz")
            models = await _ready_models(client) if prepared.wants_models else 0
        self._say_ready(models)

    async def _start_services(self) -> None:
        """Start the embedded services and, while they come up, load Django."""
        waits: list[Callable[[], Awaitable[None]]] = []
        if not env.outside_database():
            postgres = Postgres(
                data=env.DATA_DIR / "postgres",
                sockets=env.socket_dir(),
                log_file=env.DATA_DIR / "logs" / "postgres.log",
            )
            await asyncio.to_thread(postgres.prepare)
            child = await self._supervisor.start(postgres.program())
            waits.append(partial(self._postgres_ready, postgres, child))
        if not env.outside_redis():
            valkey = Valkey(
                data=env.DATA_DIR / "valkey",
                socket=env.socket_dir() / "valkey.sock",
                log_file=env.DATA_DIR / "logs" / "valkey.log",
            )
            await asyncio.to_thread(valkey.prepare)
            child = await self._supervisor.start(valkey.program())
            waits.append(partial(self._valkey_ready, valkey, child))
        from llamaproj.up import portal

        portal.load()
        await asyncio.gather(*(wait() for wait in waits))

    async def _postgres_ready(self, postgres: Postgres, child: Child) -> None:
        if not await _ready(child, postgres.is_ready, tries=_POSTGRES_TRIES):
            raise StartError(
                f"PostgreSQL doesn't start:\n{end_of_log(env.DATA_DIR / 'logs' / 'postgres.log')}"
            )
        await asyncio.to_thread(postgres.create_database, "llamaproj")

    async def _valkey_ready(self, valkey: Valkey, child: Child) -> None:
        if await _ready(child, valkey.is_ready, tries=_VALKEY_TRIES):
            return
        await self._supervisor.stop(["valkey"], hurry=self._signals.hurry)
        place = valkey.set_aside()
        self._output.say(f"Valkey could not read its data; it starts empty (the old data is in {place}).")
        valkey.prepare()
        child = await self._supervisor.start(valkey.program())
        if not await _ready(child, valkey.is_ready, tries=_VALKEY_TRIES):
            raise StartError(f"Valkey doesn't start:\n{end_of_log(env.DATA_DIR / 'logs' / 'valkey.log')}")

    async def _until_ready(self, client: httpx.AsyncClient, path: str) -> None:
        """Wait until the portal answers yes. Raises `StartError` when it takes too long."""
        while await _ask(client, path) is None:
            if time.monotonic() - self._began > _PORTAL_READY_S:
                raise StartError(
                    f"The portal didn't become ready within {_PORTAL_READY_S} s; see the lines above."
                )
            await asyncio.sleep(_POLL_S * 4)

    def _say_ready(self, models: int) -> None:
        seconds = time.monotonic() - self._began
        url = f"http://{address.host_in_url(env.HOST)}:{env.PORT}/"
        state = {0: "No model is ready yet.", 1: "One model is ready."}.get(
            models, f"{models} models are ready."
        )
        self._output.say(
            f"\n  llamaproj is ready at {url} after {seconds:.1f} s. {state}"
            f"\n  {_sign_in(self._password_to_say)}"
            "\n  Ctrl-C stops everything.\n"
        )
        self._password_to_say = None

    async def _stop(self) -> None:
        self._output.say("Stopping …")
        for group in _STOP_FIRST:
            await self._supervisor.stop(group, hurry=self._signals.hurry)
        if self._models_may_run:
            await stop_models(self._output)
        for service in _STOP_LAST:
            await self._supervisor.stop([service], hurry=self._signals.hurry)
        await self._supervisor.close()
        if self._password_to_say:
            # The start failed, but the account exists by now.
            self._output.say(_sign_in(self._password_to_say))
        self._output.say("Stopped.")


async def _ready(child: Child, check: Callable[[], bool], *, tries: int) -> bool:
    """Wait until `check` holds. False when the child died `tries` times or time is up."""
    deadline = time.monotonic() + _SERVICE_READY_S
    while child.deaths < tries and time.monotonic() < deadline:
        if child.is_running and await asyncio.to_thread(check):
            return True
        await asyncio.sleep(_POLL_S)
    return False


async def _ask(client: httpx.AsyncClient, path: str) -> dict[str, Any] | None:
    """What the portal says there, None unless it says yes."""
    with contextlib.suppress(httpx.HTTPError):
        answer = await client.get(path)
        if answer.status_code == httpx.codes.OK:
            report: dict[str, Any] = answer.json()
            return report
    return None


async def _ready_models(client: httpx.AsyncClient) -> int:
    """Wait a while for a model. Returns how many are ready."""
    deadline = time.monotonic() + _MODEL_READY_S
    while True:
        report = await _ask(client, "/readyz") or {"models": {}}
        ready = int(report["models"].get("ready", 0))
        if ready or time.monotonic() > deadline:
            return ready
        await asyncio.sleep(_POLL_S * 4)


def _sign_in(password: str | None) -> str:
    if password:
        return f"Sign in as {env.ADMIN_USERNAME} with the password {password} (shown this once: keep it)."
    return f"Sign in as {env.ADMIN_USERNAME}." if env.ADMIN_PASSWORD else "Sign in with your account."
