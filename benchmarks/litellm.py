"""LiteLLM's proxy, as the gateway to compare with: in an environment of its own, kept for the next time."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import httpx
import psutil

from benchmarks.child import cpu_s
from benchmarks.environment import DATA_DIR, free_port
from llamaproj import env

VERSION = "1.106.2"
_PLACE = env.BASE_DIR / ".data-bench" / f"litellm-{VERSION}"
_INSTALL_S = 300
_READY_S = 240
_STOP_S = 10


class NotToBeHad(RuntimeError):
    """LiteLLM can't be installed or started here."""


def _install() -> Path:
    """Its program. Raises `NotToBeHad`."""
    program = _PLACE / "bin" / "litellm"
    if program.exists():
        return program
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        raise NotToBeHad("there is no uv to install it with")
    print(f"Installing LiteLLM {VERSION} into {_PLACE}; the next run finds it there.", file=sys.stderr)
    steps = (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(_PLACE)],
        [uv, "pip", "install", "--quiet", "--python", str(_PLACE), f"litellm[proxy]=={VERSION}"],
    )
    try:
        for step in steps:
            subprocess.run(step, check=True, timeout=_INSTALL_S)
    except (subprocess.SubprocessError, OSError) as error:
        shutil.rmtree(_PLACE, ignore_errors=True)
        raise NotToBeHad(f"its installation failed: {error}") from None
    return program


class LiteLLM:
    """One worker in front of the upstream, running as long as the block."""

    key = "sk-only-for-benchmarks"

    def __init__(self, upstream_url: str, models: Sequence[str]) -> None:
        self._upstream_url, self._models = upstream_url, models
        self.port = free_port()

    def __enter__(self) -> Self:
        program = _install()
        config = DATA_DIR / "litellm.yaml"
        # JSON is YAML, too.
        config.write_text(json.dumps(self._config()))
        # Nothing is fetched or told outside; its settings are those its documents recommend for speed.
        environment = os.environ | {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
        }
        for ours in ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "REDIS_URL"):
            environment.pop(ours)
        self._log = DATA_DIR / "logs" / "litellm.log"
        arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(self.port)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(program), *arguments, "--num_workers", "1"], env=environment, stdout=log, stderr=log
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        family = [psutil.Process(self.pid), *self._children()]
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        for one in family:
            if one.is_running():
                one.kill()
        self._process.wait()

    def _config(self) -> dict[str, object]:
        where = {"model": "openai/fast", "api_base": f"{self._upstream_url}/v1", "api_key": "key"}
        return {
            "model_list": [{"model_name": model, "litellm_params": where} for model in self._models],
            "litellm_settings": {"telemetry": False, "request_timeout": 600},
            "general_settings": {"master_key": self.key},
        }

    def _wait(self) -> None:
        deadline = time.monotonic() + _READY_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NotToBeHad(f"it doesn't start: {self._log.read_text(errors='replace')[-400:]}")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health/liveliness", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._process.pid

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def pids(self) -> list[int]:
        """All its processes."""
        return [self.pid, *(child.pid for child in self._children())]

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far."""
        return {"web": sum(cpu_s(pid) for pid in self.pids())}
