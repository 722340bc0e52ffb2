"""A scripted NVML."""

from types import SimpleNamespace


class Library:
    """A scripted NVML with one GPU that doesn't know its power."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, installed=True):
        self.installed = installed
        self.opened = 0

    def nvmlInit(self):
        self.opened += 1
        if not self.installed:
            raise self.NVMLError("Shared Library Not Found")

    def __getattr__(self, name):
        answers = {
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "gpu0",
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=40),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=10, total=80),
            "nvmlDeviceGetTemperature": 55,
            "nvmlDeviceGetName": "H200",
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=1, usedGpuMemory=9)],
            "nvmlDeviceGetGraphicsRunningProcesses": [SimpleNamespace(pid=1, usedGpuMemory=None)],
        }

        def call(*_):
            if name not in answers:
                raise self.NVMLError("Not Supported")
            return answers[name]

        return call
