"""Random misfortunes for a running portal's models, and what must be true afterwards.

python -m tests.models_admin.chaos --events 200 --seed 1
"""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.portal import Portal, new_portal

# Within so long after the last misfortune everything is as it should be.
RECOVERY_S = 30
MODELS = {"steady": 2, "small": 1, "spare": 1}

SERVE = """
from models_admin import actions
from models_admin.models import ModelFile, PortalConfig
PortalConfig(memory_reserve_mib=0, prompt_cache_mib=0, health_timeout_s=3, drain_timeout_s=3).save()
file = ModelFile.objects.get(error="", kind="model")
for slug, replicas in {models}.items():
    shape = {{"context_tokens": 256, "slots": 1, "min_replicas": replicas, "max_replicas": replicas}}
    actions.add(file, by=None, slug=slug, enabled=True, **shape)
print(file.path)
"""
CHANGE = """
from models_admin import actions
from models_admin.models import ServedModel
actions.change(ServedModel.objects.get(slug={slug!r}), by=None, batch_tokens={batch_tokens})
"""


class Chaos:
    """One run: misfortunes one after the other, then the reckoning."""

    def __init__(self, portal: Portal, seed: int) -> None:
        self.portal = portal
        self.dice = random.Random(seed)
        self.told: list[str] = []
        self.stopped: set[int] = set()
        self.file = Path(portal.manage("shell", "-c", SERVE.format(models=MODELS)).split()[-1])
        self.events: list[Callable[[], str]] = [
            self.kill_a_model,
            self.kill_a_model,
            self.freeze_a_model,
            self.kill_the_node_worker,
            self.restart_valkey,
            self.change_settings,
            self.lose_the_file,
        ]

    def run(self, events: int) -> None:
        """So many misfortunes, a moment apart, then wait until all is well. Raises `AssertionError`."""
        for number in range(events):
            self.told.append(f"{number}: {self.dice.choice(self.events)()}")
            time.sleep(self.dice.uniform(0.1, 2.0))
        began = time.monotonic()
        wrong = self.wrong()
        while wrong:
            assert time.monotonic() - began < RECOVERY_S, (wrong, self.told, self.portal.output(40))
            time.sleep(0.5)
            wrong = self.wrong()
        print(f"{events} events; well again after {time.monotonic() - began:.1f} s")

    def wrong(self) -> str:
        """What isn't as it should be, in words; empty when all is."""
        rows = self.portal.query(
            "SELECT s.slug, i.state, i.pid, i.port FROM models_admin_instance i"
            " JOIN models_admin_servedmodel s ON s.id = i.served_id WHERE i.state <> 'stopped'"
        )
        for slug, replicas in MODELS.items():
            states = [state for its, state, _, _ in rows if its == slug]
            if states != ["ready"] * replicas:
                return f"{slug} is {states}"
        known = {pid for _, _, pid, _ in rows}
        running = set(self.engines())
        if known != running:
            return f"{running} run, {known} are known"
        kept = self.portal.query(
            "SELECT count(*) FROM models_admin_instance WHERE state = 'stopped'"
            " AND (port IS NOT NULL OR pid IS NOT NULL)"
        )
        return "" if kept == [(0,)] else f"{kept} ended ones hold a port or a process"

    def engines(self) -> list[int]:
        """Every llama-server of this portal, whoever knows of it."""
        found = []
        for process in self.portal.processes():
            try:
                if "--model" in process.cmdline() and process.environ().get("LLAMAPROJ_INSTANCE"):
                    found.append(process.pid)
            except psutil.NoSuchProcess:
                continue
        return found

    # Misfortunes ------------------------------------------------------------------------------------------------------

    def kill_a_model(self) -> str:
        """kill -9."""
        return self._signal_one(signal.SIGKILL)

    def freeze_a_model(self) -> str:
        """It lives and doesn't answer."""
        return self._signal_one(signal.SIGSTOP)

    def kill_the_node_worker(self) -> str:
        """The one that looks after the models."""
        return self._kill("node")

    def restart_valkey(self) -> str:
        """Broker, cache and channel layer at once."""
        return self._kill("valkey")

    def change_settings(self) -> str:
        """Replicas are replaced."""
        slug, batch_tokens = self.dice.choice(list(MODELS)), self.dice.choice([256, 512, 1024])
        self.portal.manage("shell", "-c", CHANGE.format(slug=slug, batch_tokens=batch_tokens))
        return f"{slug} with batches of {batch_tokens}"

    def lose_the_file(self) -> str:
        """Away, and back again."""
        away = self.file.with_suffix(".away")
        self.file.rename(away)
        seconds = self.dice.uniform(0.5, 3)
        time.sleep(seconds)
        away.rename(self.file)
        return f"file away for {seconds:.1f} s"

    def _signal_one(self, signum: signal.Signals) -> str:
        engines = self.engines()
        if not engines:
            return "no model to signal"
        pid = self.dice.choice(engines)
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            return f"{pid} was gone"
        return f"{signum.name} to {pid}"

    def _kill(self, name: str) -> str:
        pid = self.portal.pids.get(name)
        if pid is None:
            return f"{name} was gone"
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return f"{name} was gone"
        return f"{name} killed"


def main() -> int:
    """A long run on a portal of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with new_portal(DEMO_MODEL="1") as portal:
        portal.start().wait_ready(models=1)
        portal.manage("models", "stop", "smollm2-135m-instruct")
        Chaos(portal, options.seed).run(options.events)
        assert portal.stop() == 0
        assert portal.processes() == []
    return 0


if __name__ == "__main__":
    sys.exit(main())
