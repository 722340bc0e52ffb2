"""What this machine and its llama-servers are doing, read from the operating system and NVML.

Rates are deltas of counters over a monotonic clock, so the first reading has none, and neither has one whose counters
went backwards. Everything here is plain Python: no Django, no database.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from models_admin.nodes.gpus import Gpu, Nvml

# Two readings closer than this share their rates: the counters' own grain (10 ms ticks) would dominate.
_SHORTEST_INTERVAL_S = 0.25
# After a longer silence a rate would be an average over a time nobody asked about.
_LONGEST_INTERVAL_S = 60.0
# Creation times come from the boot time, which a clock adjustment may shift by a second or so.
_SAME_PROCESS_S = 1.5


class ProcessId(NamedTuple):
    """A process, safe against reused numbers: its pid and start time in seconds since 1970."""

    pid: int
    created: float


@dataclass(frozen=True, slots=True)
class Volume:
    """The file system that holds a folder."""

    name: str
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Process:
    """One living process. 100 % is one core's time."""

    cpu_percent: float | None
    memory_bytes: int
    threads: int
    gpu_memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """A machine at one moment. None: not known (yet)."""

    cpu_percent: float | None
    core_percents: list[float]
    memory_used_bytes: int
    memory_total_bytes: int
    load: tuple[float, float, float]
    network_in_bytes_s: float | None
    network_out_bytes_s: float | None
    disk_read_bytes_s: float | None
    disk_write_bytes_s: float | None
    volumes: list[Volume]
    gpus: list[Gpu]
    processes: dict[str, Process]


class Sampler:
    """Takes readings and remembers the counters of the one before. Threads may share it."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        system: Any = psutil,
        gpus: Callable[[], list[Gpu]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders = folders
        self._system = system
        self._gpus = gpus or Nvml().read
        self._clock = clock
        self._lock = threading.Lock()
        self._before: _Counters | None = None
        self._rates = _Rates()
        self._handles: dict[ProcessId, psutil.Process] = {}

    def read(self, processes: Mapping[str, ProcessId] | None = None) -> Reading:
        """The machine and the given processes now; those that are gone are left out."""
        with self._lock:
            return self._read(processes or {})

    def _read(self, wanted: Mapping[str, ProcessId]) -> Reading:
        system = self._system
        living = self._living(wanted)
        self._update_rates(
            _Counters(
                at=self._clock(),
                cores=[_core_times(times) for times in system.cpu_times(percpu=True)],
                network=_network(system),
                disks=_disks(system),
                cpu_s={key: cpu_s for key, (cpu_s, _, _) in living.items()},
            ),
            {key: identity for key, identity in wanted.items() if key in living},
        )
        memory = system.virtual_memory()
        gpus = self._gpus()
        rates = self._rates
        return Reading(
            cpu_percent=_mean(rates.cores),
            core_percents=rates.cores,
            # What is not available is used: the same measure as psutil's own percentage.
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            load=system.getloadavg(),
            network_in_bytes_s=rates.network_in,
            network_out_bytes_s=rates.network_out,
            disk_read_bytes_s=rates.disk_read,
            disk_write_bytes_s=rates.disk_write,
            volumes=_volumes(self._folders, system),
            gpus=gpus,
            processes={
                key: Process(rates.cpu.get(key), rss, threads, _gpu_memory(gpus, wanted[key].pid))
                for key, (_, rss, threads) in living.items()
            },
        )

    def _living(self, wanted: Mapping[str, ProcessId]) -> dict[str, tuple[float, int, int]]:
        """CPU seconds, resident bytes and threads of each wanted process that lives."""
        handles = {}
        found = {}
        for key, identity in wanted.items():
            try:
                handle = self._handles.get(identity) or self._system.Process(identity.pid)
                if abs(handle.create_time() - identity.created) > _SAME_PROCESS_S or not handle.is_running():
                    continue
                with handle.oneshot():
                    times = handle.cpu_times()
                    found[key] = (times.user + times.system, handle.memory_info().rss, handle.num_threads())
                handles[identity] = handle
            except self._system.Error:
                continue
        self._handles = handles
        return found

    def _update_rates(self, now: "_Counters", identities: Mapping[str, ProcessId]) -> None:
        now.identities = dict(identities)
        before = self._before
        if before is not None and 0 <= now.at - before.at < _SHORTEST_INTERVAL_S:
            return
        self._before = now
        if before is None or not 0 < now.at - before.at <= _LONGEST_INTERVAL_S:
            self._rates = _Rates()
            return
        seconds = now.at - before.at
        same = {key for key, identity in identities.items() if before.identities.get(key) == identity}
        self._rates = _Rates(
            cores=_core_percents(before.cores, now.cores),
            network_in=_rate(before.network, now.network, 0, seconds),
            network_out=_rate(before.network, now.network, 1, seconds),
            disk_read=_rate(before.disks, now.disks, 0, seconds),
            disk_write=_rate(before.disks, now.disks, 1, seconds),
            cpu={key: max(0.0, now.cpu_s[key] - before.cpu_s[key]) / seconds * 100 for key in same},
        )


@dataclass(slots=True)
class _Counters:
    at: float
    cores: list[tuple[float, float]]
    network: dict[str, tuple[int, int]]
    disks: dict[str, tuple[int, int]]
    cpu_s: dict[str, float]
    identities: dict[str, ProcessId] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Rates:
    cores: list[float] = field(default_factory=list)
    network_in: float | None = None
    network_out: float | None = None
    disk_read: float | None = None
    disk_write: float | None = None
    cpu: dict[str, float] = field(default_factory=dict)


def _core_times(times: Any) -> tuple[float, float]:
    """Busy and total seconds of a core. Guests' time stands in user time already; waiting for a disk is idle."""
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _core_percents(before: Sequence[tuple[float, float]], now: Sequence[tuple[float, float]]) -> list[float]:
    """Each core's busy share; nothing when cores came or went, or their clocks went backwards."""
    if len(before) != len(now):
        return []
    percents = []
    for (busy_before, total_before), (busy, total) in zip(before, now, strict=True):
        if total <= total_before:
            return []
        percents.append(min(100.0, max(0.0, (busy - busy_before) / (total - total_before) * 100)))
    return percents


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rate(
    before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]], which: int, seconds: float
) -> float | None:
    """Bytes a second over all devices seen both times whose counter did not start anew."""
    deltas = [now[name][which] - before[name][which] for name in now if name in before]
    forward = [delta for delta in deltas if delta >= 0]
    return sum(forward) / seconds if forward else None


def _network(system: Any) -> dict[str, tuple[int, int]]:
    """Bytes in and out of each interface that reaches other machines.

    Bridges, tunnels and shapers repeat the traffic of the hardware below them, so they count only where there is no
    hardware, as in a container.
    """
    counters = system.net_io_counters(pernic=True, nowrap=False)
    outward = {name: (io.bytes_recv, io.bytes_sent) for name, io in counters.items() if name != "lo"}
    hardware = {name: io for name, io in outward.items() if _is_hardware("net", name)}
    return hardware or outward


def _disks(system: Any) -> dict[str, tuple[int, int]]:
    """Bytes read and written of each whole disk; partitions, loops, RAID and LVM would count them twice."""
    try:
        counters = system.disk_io_counters(perdisk=True, nowrap=False) or {}
    except (OSError, RuntimeError):  # no /proc/diskstats, as in some sandboxes
        return {}
    return {
        name: (io.read_bytes, io.write_bytes) for name, io in counters.items() if _is_hardware("block", name)
    }


def _is_hardware(kind: str, name: str) -> bool:
    return Path("/sys/class", kind, name, "device").exists()


def _volumes(folders: Mapping[str, Path], system: Any) -> list[Volume]:
    """Each file system once, under the names of the folders it holds."""
    names: dict[int, list[str]] = {}
    usage = {}
    for name, folder in folders.items():
        try:
            device = folder.stat().st_dev
            usage[device] = system.disk_usage(str(folder))
        except OSError:
            continue
        names.setdefault(device, []).append(name)
    # What only root may still fill is used, for everybody else: `free` is what counts.
    return [
        Volume(", ".join(names[device]), total_bytes=use.used + use.free, used_bytes=use.used)
        for device, use in usage.items()
    ]


def _gpu_memory(gpus: Sequence[Gpu], pid: int) -> int | None:
    held = [gpu.memory_by_pid[pid] for gpu in gpus if pid in gpu.memory_by_pid]
    return sum(held) if held else None
