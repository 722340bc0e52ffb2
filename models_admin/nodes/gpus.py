"""This machine's GPUs, as NVIDIA's management library (NVML) reads them. Plain Python: no Django, no database."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

with warnings.catch_warnings():
    # The distribution "pynvml" warns that it only hands on to nvidia-ml-py, whose module this is.
    warnings.simplefilter("ignore", FutureWarning)
    import pynvml

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. None where the driver doesn't say."""

    name: str
    percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    memory_by_pid: Mapping[int, int] = field(default_factory=dict)


class Nvml:
    """NVIDIA's management library, opened on first use. A machine without it has no GPUs."""

    def __init__(self, library: Any = pynvml) -> None:
        self._library = library
        self._open: bool | None = None

    def read(self) -> list[Gpu]:
        """Every GPU as it is now."""
        if self._open is None:
            self._open = self._try_open()
        if not self._open:
            return []
        count = self._ask(self._library.nvmlDeviceGetCount) or 0
        handles = [self._ask(self._library.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
        return [self._gpu(handle) for handle in handles if handle is not None]

    def _try_open(self) -> bool:
        try:
            self._library.nvmlInit()
        except self._library.NVMLError as error:
            logger.debug("No GPU readings: %s", error)
            return False
        return True

    def _gpu(self, handle: Any) -> Gpu:
        nvml = self._library
        use = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        by_pid: dict[int, int] = {}
        for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            for process in self._ask(ask, handle) or []:
                # A process that computes and draws stands in both lists with the same figure.
                by_pid[process.pid] = max(by_pid.get(process.pid, 0), process.usedGpuMemory or 0)
        return Gpu(
            name=self._ask(nvml.nvmlDeviceGetName, handle) or "GPU",
            percent=None if use is None else float(use.gpu),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            temperature_c=self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
            memory_by_pid=by_pid,
        )

    def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        """What NVML answers, or None: many GPUs lack some of the readings, and one may fall off the bus."""
        try:
            return call(*args)
        except self._library.NVMLError:
            return None
