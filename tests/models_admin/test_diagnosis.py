"""`crash_logs/` holds what the embedded engine wrote when it was made to fail; names begin with the cause."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamaproj import env
from models_admin.engine import diagnosis, process
from models_admin.engine.diagnosis import Cause
from models_admin.models import ServedModel
from models_admin.states import InstanceState as S
from tests.models_admin.conftest import Passes, only, state_of, want
from tests.models_admin.gguf_files import small_model, write

LOGS = sorted((Path(__file__).parent / "crash_logs").glob("*.txt"))
START = "--- 2026-11-21 13:00:00 UTC: llama-server --model /srv/models/model.gguf"
PREFIX = "0.00.303.022 E "
GENERIC = [
    "0.00.303.049 E cmn  common_init_: failed to create context with model '/srv/models/model.gguf'",
    "error: Failed to init server, please check the input params.",
]


def cause_of(*lines: str, exit_status: int | None = 1) -> str | None:
    found = diagnosis.of([START, *lines, *GENERIC], exit_status=exit_status)
    return found.cause if found else None


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_what_the_engine_wrote_tells_its_cause(path: Path) -> None:
    lines = path.read_text().splitlines()
    found = diagnosis.of(lines, exit_status=1)
    assert found is not None
    assert found.cause == path.name.split(".", 1)[0]
    assert found.evidence
    assert all(any(shown in line for line in lines) for shown in found.evidence)
    assert "{" not in found.summary
    assert not found.is_guess


@pytest.mark.parametrize(
    ("cause", "line"),
    [
        (Cause.OUT_OF_GPU_MEMORY, "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1.00 MiB on device 0: "
         "cudaMalloc failed: out of memory"),
        (Cause.OUT_OF_GPU_MEMORY, "ggml_gallocr_reserve_n_impl: failed to allocate CUDA1 buffer of size 54262464512"),
        (Cause.OUT_OF_GPU_MEMORY, "llama_model_load: error loading model: unable to allocate CUDA0 buffer"),
        (Cause.OUT_OF_GPU_MEMORY, "CUDA error: out of memory"),
        (Cause.OUT_OF_GPU_MEMORY, "ggml_vulkan: Device memory allocation of size 369827840 failed."),
        (Cause.OUT_OF_GPU_MEMORY, "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory"),
        (Cause.OUT_OF_GPU_MEMORY, "ggml_backend_metal_buffer_type_alloc_buffer: error: failed to allocate buffer"),
        (Cause.OUT_OF_MEMORY, "terminate called after throwing an instance of 'std::bad_alloc'"),
        (Cause.OUT_OF_MEMORY, "llama_model_load: error loading model: mmap failed: Cannot allocate memory"),
        (Cause.OUT_OF_MEMORY, "alloc_tensor_range: failed to allocate CUDA_Host buffer of size 151851674624"),
        (Cause.GPU_GONE, "CUDA error: no CUDA-capable device is detected"),
        (Cause.GPU_GONE, "terminate called after throwing an instance of 'vk::DeviceLostError': ErrorDeviceLost"),
        (Cause.UNKNOWN_ARCHITECTURE, "llama_model_load: error loading model: done_getting_tensors: wrong number of "
         "tensors; expected 292, got 291"),
        (Cause.MISSING_LIBRARY, "/opt/llama-server: error while loading shared libraries: libcudart.so.12: cannot open "
         "shared object file: No such file or directory"),
        (Cause.ILLEGAL_INSTRUCTION, "Illegal instruction (core dumped)"),
        (Cause.TEMPLATE, "error: the supplied chat template is not supported: nonsense"),
        (Cause.CACHE_TYPE, "llama_init_from_model: V cache quantization requires flash_attn"),
        (Cause.CACHE_TYPE, "llama_init_from_model: K cache type q8_0 with block size 32 does not divide 80"),
        (Cause.LORA, "llama_adapter_lora_init: failed to apply lora adapter: LoRA tensor 'a' does not exist in base "
         "model (hint: maybe wrong base model?)"),
        (Cause.DRAFT_MODEL, "srv    load_model: failed to load draft model, '/srv/models/draft.gguf'"),
        (Cause.WRONG_FLAG, "error: invalid argument: --frobnicate"),
        (Cause.WRONG_FLAG, 'error while handling argument "--rope-scale": stof'),
        (Cause.PORT_IN_USE, "main: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080"),
        (Cause.ENGINE_FAULT, "/src/ggml/src/ggml.c:1234: GGML_ASSERT(tensor != NULL) failed"),
        (Cause.ENGINE_FAULT, "CUDA error: an illegal memory access was encountered"),
    ],
)  # fmt: skip
def test_what_other_builds_write_tells_their_cause(cause: Cause, line: str) -> None:
    assert cause_of(line) == cause
    assert cause_of(PREFIX + line) == cause


@pytest.mark.parametrize(
    "line",
    [
        "warning: failed to mlock 1048576-byte buffer (after previously locking 0 bytes): Cannot allocate memory",
        "ggml_cuda_host_malloc: failed to allocate 1900.00 MiB of pinned memory: invalid argument",
        "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected",
        "common_fit_params: encountered an error while trying to fit params to free device memory: failed to load",
        "slot print_timing: id  0 | task 1 | eval time = 10 ms",
    ],
)
def test_a_warning_is_no_cause(line: str) -> None:
    assert cause_of(line) is None


def test_what_was_got_over_or_belongs_to_an_earlier_start_is_no_cause() -> None:
    failed = (
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1.00 MiB: cudaMalloc failed: out of memory"
    )
    again = "sched_reserve: compute buffer allocation failed, retrying without pipeline parallelism"
    assert cause_of(failed, again) is None
    assert cause_of(failed, "main: model loaded") is None
    assert cause_of(failed, START) is None
    assert cause_of(failed, again, failed) == Cause.OUT_OF_GPU_MEMORY


def test_the_subject_and_the_place_are_named() -> None:
    flag = diagnosis.of(["error: invalid argument: --frobnicate"])
    assert flag
    assert flag.subject == "--frobnicate"
    assert "--frobnicate" in flag.summary
    port = diagnosis.of(["main: couldn't bind HTTP server socket, hostname: 10.0.0.1, port: 8080"])
    assert port
    assert "10.0.0.1:8080" in port.summary


@pytest.mark.parametrize(
    ("status", "kills", "cause"),
    [
        (-signal.SIGILL, None, Cause.ILLEGAL_INSTRUCTION),
        (128 + signal.SIGILL, None, Cause.ILLEGAL_INSTRUCTION),
        (-signal.SIGKILL, 1, Cause.OUT_OF_MEMORY),
        (-signal.SIGKILL, None, Cause.OUT_OF_MEMORY),
        (-signal.SIGKILL, 0, None),
        (-signal.SIGBUS, None, Cause.BAD_FILE),
        (-signal.SIGSEGV, None, Cause.ENGINE_FAULT),
        (-signal.SIGTERM, None, None),
        (1, None, None),
        (None, None, None),
    ],
)
def test_without_a_word_the_way_it_ended_may_tell(
    status: int | None, kills: int | None, cause: Cause | None
) -> None:
    found = diagnosis.of([START, "srv init: loading model"], exit_status=status, memory_kills=kills)
    assert (found.cause if found else None) == cause


def test_the_log_is_believed_before_the_signal() -> None:
    assert cause_of("GGML_ASSERT(a) failed", exit_status=-signal.SIGKILL) == Cause.ENGINE_FAULT


def test_a_cause_once_found_is_told_again_without_its_log() -> None:
    told = diagnosis.known("bad_file", [])
    assert told
    assert "damaged" in told.summary
    assert diagnosis.known("no_room", []) is None
    assert diagnosis.known("", []) is None


def test_every_cause_fits_its_column_and_has_words() -> None:
    assert all(len(cause) <= 30 and diagnosis.known(cause, []) for cause in Cause)


def test_an_ending_is_told_as_data_and_in_words() -> None:
    child = subprocess.Popen(["/bin/sh", "-c", "exit 3"])
    process.keep(child)
    child.wait(10)
    ending = process.ending_of(child.pid)
    assert (ending.status, ending.words) == (3, "The process ended with status 3.")
    assert ending.memory_kills in {0, None}
    assert process.ending_of(child.pid).words == "The process has ended."
    assert "SIGKILL" in process.Ending(status=-9).words


# With the real engine ---------------------------------------------------------------------------------------------


def ended(model: Path, *flags: str, memory_bytes: int = resource.RLIM_INFINITY) -> diagnosis.Diagnosis | None:
    """Run the embedded engine until it gives up."""
    command = [
        sys.executable,
        "-m",
        "models_admin.engine.embedded_engine",
        "--model",
        str(model),
        "--port",
        "0",
        *flags,
    ]
    done = subprocess.run(
        command,
        cwd=env.BASE_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes)),
    )
    return diagnosis.of(done.stdout.decode(errors="replace").splitlines(), exit_status=done.returncode)


def test_a_context_too_large_for_the_memory(demo_model: Path) -> None:
    found = ended(demo_model, "--ctx-size", "400000", memory_bytes=3 * 2**30)
    assert found
    assert found.cause == Cause.OUT_OF_MEMORY


def test_a_file_that_is_cut_off(demo_model: Path, tmp_path: Path) -> None:
    with demo_model.open("rb") as whole:
        cut = write(tmp_path / "cut.gguf", whole.read(20_000_000))
    found = ended(cut)
    assert found
    assert found.cause == Cause.BAD_FILE


@pytest.mark.django_db(transaction=True)
def test_a_crash_is_kept_with_its_cause_and_one_that_would_come_again_is_final(
    served: ServedModel, passes: Passes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "old-llama-server"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in --help) echo "--model --host --port --ctx-size --parallel"; exit;; esac\n'
        "echo \"llama_model_load: error loading model: unknown model architecture: 'qwen9'\" >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(program))
    write(tmp_path / "model.gguf", small_model())
    want(served, 1)
    passes.until(lambda: state_of(served) == S.FAILED)
    instance = only(served)
    assert (instance.cause, instance.crashes) == (Cause.UNKNOWN_ARCHITECTURE, 1)
    assert "qwen9" in instance.reason
