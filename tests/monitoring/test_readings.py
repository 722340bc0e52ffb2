"""What a machine does, read from a scripted system and from the real one."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from models_admin.nodes.gpus import Nvml
from monitoring.readings import ProcessId, Sampler
from tests.fake_nvml import Library


class System:
    """A scripted psutil: what it says is what a test has set."""

    Error = psutil.Error

    def __init__(self):
        self.cores = [(10.0, 90.0)]  # busy and idle seconds
        self.network = {"lo": (5, 5), "net7": (1_000, 500)}
        self.cpu_s = {1: 3.0}
        self.created = {1: 100.0}

    def cpu_times(self, percpu):
        times = psutil.cpu_times()._asdict()
        return [
            type(psutil.cpu_times())(**(dict.fromkeys(times, 0.0) | {"user": u, "idle": i}))
            for u, i in self.cores
        ]

    def virtual_memory(self):
        return SimpleNamespace(total=1_000, available=400)

    def getloadavg(self):
        return (1.0, 2.0, 3.0)

    def net_io_counters(self, **_):
        return {name: SimpleNamespace(bytes_recv=r, bytes_sent=s) for name, (r, s) in self.network.items()}

    def disk_io_counters(self, **_):
        return {}

    def disk_usage(self, path):
        return SimpleNamespace(used=1, free=3)

    def Process(self, pid):
        if pid not in self.cpu_s:
            raise psutil.NoSuchProcess(pid)
        return _ScriptedProcess(self, pid)


class _ScriptedProcess:
    def __init__(self, system, pid):
        self.system, self.pid = system, pid

    def create_time(self):
        return self.system.created[self.pid]

    def is_running(self):
        return self.pid in self.system.cpu_s

    def oneshot(self):
        return threading.Lock()

    def cpu_times(self):
        return SimpleNamespace(user=self.system.cpu_s[self.pid], system=0.0)

    def memory_info(self):
        return SimpleNamespace(rss=77)

    def num_threads(self):
        return 4


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def system():
    return System()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sampler(system, clock, tmp_path):
    return Sampler({"data": tmp_path, "models": tmp_path}, system=system, gpus=list, clock=clock)


def test_the_first_reading_has_no_rates(sampler):
    reading = sampler.read({"a": ProcessId(1, 100.0)})
    assert reading.cpu_percent is None
    assert reading.network_in_bytes_s is None
    assert reading.processes["a"].cpu_percent is None
    assert reading.processes["a"].memory_bytes == 77
    assert reading.memory_used_bytes == 600


def test_rates_are_deltas_over_the_time_between(sampler, system, clock):
    sampler.read({"a": ProcessId(1, 100.0)})
    clock.now = 2.0
    system.cores = [(11.5, 90.5)]
    system.network["net7"] = (5_000, 700)
    system.cpu_s[1] = 6.0
    reading = sampler.read({"a": ProcessId(1, 100.0)})
    assert reading.cpu_percent == pytest.approx(75)
    assert reading.network_in_bytes_s == pytest.approx(2_000)
    assert reading.network_out_bytes_s == pytest.approx(100)
    assert reading.processes["a"].cpu_percent == pytest.approx(150)


def test_a_counter_that_starts_anew_makes_no_negative_rate(sampler, system, clock):
    sampler.read()
    clock.now = 2.0
    system.network["net7"] = (10, 10)
    system.cores = [(0.0, 1.0)]
    reading = sampler.read()
    assert reading.network_in_bytes_s is None
    assert reading.cpu_percent is None
    clock.now = 4.0
    system.network["net7"] = (30, 10)
    assert sampler.read().network_in_bytes_s == pytest.approx(10)


def test_an_interface_that_appears_counts_from_its_second_reading(sampler, system, clock):
    sampler.read()
    clock.now = 1.0
    system.network["net8"] = (9_000_000, 0)
    assert sampler.read().network_in_bytes_s == 0
    clock.now = 2.0
    system.network["net8"] = (9_000_100, 0)
    assert sampler.read().network_in_bytes_s == pytest.approx(100)


@pytest.mark.parametrize("later", [-5.0, 500.0])
def test_a_clock_that_jumps_gives_no_rates(sampler, system, clock, later):
    sampler.read()
    clock.now = later
    system.cores = [(20.0, 95.0)]
    assert sampler.read().cpu_percent is None
    clock.now = later + 1
    system.cores = [(21.0, 95.0)]
    assert sampler.read().cpu_percent == pytest.approx(100)


def test_two_readings_at_once_share_their_rates(sampler, system, clock):
    sampler.read()
    clock.now = 1.0
    system.cores = [(10.5, 90.5)]
    first = sampler.read()
    clock.now = 1.01
    system.cores = [(10.51, 90.5)]
    assert sampler.read().cpu_percent == first.cpu_percent == pytest.approx(50)


def test_a_reused_pid_is_not_the_process(sampler, system, clock):
    assert "a" in sampler.read({"a": ProcessId(1, 100.0)}).processes
    system.created[1] = 900.0
    clock.now = 2.0
    assert "a" not in sampler.read({"a": ProcessId(1, 100.0)}).processes
    system.cpu_s[1] = 0.5
    after = sampler.read({"a": ProcessId(1, 900.0)}).processes["a"]
    assert after.cpu_percent is None


def test_a_process_that_is_gone_is_left_out(sampler):
    assert sampler.read({"b": ProcessId(2, 100.0)}).processes == {}


def test_folders_of_one_file_system_are_one_volume(sampler):
    (volume,) = sampler.read().volumes
    assert (volume.name, volume.used_bytes, volume.total_bytes) == ("data, models", 1, 4)


def test_a_folder_that_is_not_there_is_no_error(system, clock, tmp_path):
    assert Sampler({"data": tmp_path / "none"}, system=system, gpus=list, clock=clock).read().volumes == []


def test_threads_may_share_a_sampler(tmp_path):
    sampler = Sampler({"data": tmp_path}, gpus=list)
    mine = {"me": ProcessId(os.getpid(), psutil.Process().create_time())}
    threads = [threading.Thread(target=lambda: [sampler.read(mine) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sampler.read(mine).processes["me"].threads >= 1


def test_it_agrees_with_psutil_within_five_percent(tmp_path):
    sampler = Sampler({"data": tmp_path}, gpus=list)
    me = psutil.Process()
    mine = {"me": ProcessId(me.pid, me.create_time())}
    # On a machine that does other things at the same time the two may be kept apart: that is tried again.
    for tries_left in reversed(range(5)):
        sampler.read(mine)
        psutil.cpu_percent()
        me.cpu_percent()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            sum(range(10_000))
        reading = sampler.read(mine)
        ours = (reading.cpu_percent, reading.processes["me"].cpu_percent)
        if ours == (theirs := pytest.approx((psutil.cpu_percent(), me.cpu_percent()), abs=5)):
            break
        assert tries_left, (ours, theirs)
    memory = psutil.virtual_memory()
    assert reading.memory_used_bytes / reading.memory_total_bytes * 100 == pytest.approx(
        memory.percent, rel=0.05
    )


def test_a_process_is_told_how_much_gpu_memory_it_holds(system, clock, tmp_path):
    sampler = Sampler({"data": tmp_path}, system=system, gpus=Nvml(Library()).read, clock=clock)
    assert sampler.read({"a": ProcessId(1, 100.0)}).processes["a"].gpu_memory_bytes == 9


def test_the_whole_machine_can_be_read():
    reading = Sampler({"data": Path("/tmp")}).read()
    assert reading.memory_total_bytes > reading.memory_used_bytes > 0
    assert reading.volumes[0].total_bytes > 0
