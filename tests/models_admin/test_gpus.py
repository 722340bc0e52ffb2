"""GPUs as NVML tells of them, scripted and real."""

from models_admin.nodes.gpus import Gpu, Nvml
from tests.fake_nvml import Library


def test_a_gpu_is_read_with_what_its_driver_knows():
    (gpu,) = Nvml(Library()).read()
    assert gpu == Gpu("H200", 40.0, 10, 80, 55, None, {1: 9})


def test_a_machine_without_nvml_has_no_gpus_and_is_asked_once():
    library = Library(installed=False)
    nvml = Nvml(library)
    assert nvml.read() == nvml.read() == []
    assert library.opened == 1


def test_the_real_nvml_answers_or_is_absent():
    assert all(gpu.name for gpu in Nvml().read())
