"""Real engines of a test's own, launched as it likes."""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from llamaproj import env
from tests.portal import free_port

_READY_S = 60


@dataclass(frozen=True)
class OwnEngine:
    """A llama-server that runs."""

    base_url: str
    api_key: str
    process: "subprocess.Popen[bytes]"

    @property
    def is_healthy(self) -> bool:
        """Whether it would answer."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.base_url}/health", timeout=2).status_code == 200
        return False


@contextmanager
def running(model: Path, *flags: str) -> Iterator[OwnEngine]:
    """One with that model, two slots, and whatever else is said."""
    port, key = free_port(), secrets.token_urlsafe(16)
    # One thread: nothing here is large, and threads that wait for each other take the processor from others.
    sizes = ["--parallel", "2", "--threads", "1", "--threads-batch", "1"]
    argv = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port), *sizes, *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", "models_admin.engine.embedded_engine", *argv],
        cwd=env.BASE_DIR,
        env={**os.environ, "LLAMA_API_KEY": key},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    engine = OwnEngine(f"http://127.0.0.1:{port}", key, process)
    try:
        deadline = time.monotonic() + _READY_S
        while not engine.is_healthy:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield engine
    finally:
        process.terminate()
        process.wait(10)
