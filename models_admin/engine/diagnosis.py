"""Why a llama-server ended, out of what it last wrote and how it ended. Pure: lines in, a cause in words out.

    found = diagnosis.of(instance_log.tail(instance_id), exit_status=-4)
    found.cause, found.summary, found.evidence

To recognise more: add a `_Rule`. Rules are tried in their order, the telling ones before those whose words also appear
among the consequences of something else. Texts as llama.cpp writes them (builds of 2024 to autumn 2026).
"""

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

_MOST_EVIDENCE = 4
# Who fails says so at the end.
_LOOKED_AT = 200
# Shells report a signal's death of their child as this much more.
_SHELL_SIGNAL = 128


class Cause(StrEnum):
    """What is to blame."""

    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_GPU_MEMORY = "out_of_gpu_memory"
    GPU_GONE = "gpu_gone"
    BAD_FILE = "bad_file"
    NO_FILE = "no_file"
    UNKNOWN_ARCHITECTURE = "unknown_architecture"
    CACHE_TYPE = "unsupported_cache_type"
    TEMPLATE = "template_error"
    LORA = "lora_mismatch"
    DRAFT_MODEL = "draft_mismatch"
    PROJECTOR = "projector_mismatch"
    WRONG_FLAG = "wrong_flag"
    PORT_IN_USE = "port_in_use"
    ILLEGAL_INSTRUCTION = "illegal_instruction"
    MISSING_LIBRARY = "missing_library"
    ENGINE_FAULT = "engine_fault"


# Another try would end in the same way: somebody has to change something first. Files come back by themselves.
LASTING = frozenset({
    Cause.UNKNOWN_ARCHITECTURE, Cause.CACHE_TYPE, Cause.TEMPLATE, Cause.LORA, Cause.DRAFT_MODEL, Cause.PROJECTOR,
    Cause.WRONG_FLAG, Cause.ILLEGAL_INSTRUCTION, Cause.MISSING_LIBRARY,
})  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """A cause, a sentence or two about it, and the lines that show it.

    `subject`: the flag, name or place it is about. `is_guess`: nothing was written about it; the way the process ended
    suggests it.
    """

    cause: Cause
    summary: str
    evidence: tuple[str, ...] = ()
    subject: str = ""
    is_guess: bool = False


@dataclass(frozen=True)
class _Rule:
    """Lines that show a cause. What the pattern's groups hold is the diagnosis's subject; `words` may name it."""

    cause: Cause
    pattern: re.Pattern[str]
    words: str = ""


def _rule(cause: Cause, pattern: str, words: str = "") -> _Rule:
    return _Rule(cause, re.compile(pattern), words)


_NEWER = "A newer llama-server is needed (LLAMA_SERVER_BIN names the one to use)."
_WORDS = {
    Cause.OUT_OF_MEMORY: "The machine had not enough free memory for it.",
    Cause.OUT_OF_GPU_MEMORY: "The GPU had not enough free memory for it.",
    Cause.GPU_GONE: "The GPU can't be used: it is missing, busy, or its driver has given up. See what nvidia-smi (or "
    "the vendor's tool) says on that machine.",
    Cause.BAD_FILE: "The model's file is damaged or incomplete. Download it again, then scan the folders.",
    Cause.NO_FILE: "A file it was to load isn't there or can't be read. Put it back, then scan the folders.",
    Cause.UNKNOWN_ARCHITECTURE: f"This llama-server is older than the model and can't read it. {_NEWER}",
    Cause.CACHE_TYPE: "This type of KV cache doesn't work with the other settings.",
    Cause.TEMPLATE: "The chat template can't be understood.",
    Cause.LORA: "A LoRA adapter doesn't belong to this model.",
    Cause.DRAFT_MODEL: "The draft model doesn't go with this model, or can't be loaded.",
    Cause.PROJECTOR: "The projector for images doesn't go with this model, or can't be loaded.",
    Cause.WRONG_FLAG: "The llama-server of that machine doesn't take one of the flags.",
    Cause.PORT_IN_USE: "It couldn't listen: another program has the port, or the address isn't that machine's.",
    Cause.ILLEGAL_INSTRUCTION: "This llama-server was built for another kind of processor. A build for this machine is "
    "needed (LLAMA_SERVER_BIN names the one to use).",
    Cause.MISSING_LIBRARY: "This llama-server lacks a library of the system. Install it, or use another build "
    "(LLAMA_SERVER_BIN names the one to use).",
    Cause.ENGINE_FAULT: "llama-server itself has failed. Another build may do better (LLAMA_SERVER_BIN names the one "
    "to use); the lines below belong into a report to its makers.",
}

_GPU_BUFFER = r"(?:CUDA|ROCm|HIP|MUSA|SYCL|CANN|OpenCL|Vulkan|MTL|Metal)\d*"
_RULES = (
    # Before the program is there at all.
    _rule(
        Cause.MISSING_LIBRARY,
        r"error while loading shared libraries: ([^\s:]+)"
        r"|symbol lookup error"
        r"|Library not loaded: (\S+)"
        r"|version [`']([^']+)' not found",
        "This llama-server needs {what}, which that machine doesn't have. Install it, or use another build "
        "(LLAMA_SERVER_BIN names the one to use).",
    ),
    _rule(Cause.ILLEGAL_INSTRUCTION, r"[Ii]llegal instruction|Exec format error"),
    # What it was told to do.
    _rule(
        Cause.CACHE_TYPE,
        r"V cache quantization requires flash_attn"
        r"|quantized V cache (?:requires flash_attn|was requested, but this requires Flash Attention)",
        "A quantised V cache needs flash attention, which is off.",
    ),
    _rule(
        Cause.CACHE_TYPE,
        r"[KV] cache type (\S+) with block size \d+ does not divide|Unsupported cache type: (\S+)",
        "A KV cache of the type {what} can't be used with this model.",
    ),
    _rule(
        Cause.TEMPLATE,
        r"chat template parsing error|failed to (?:initialize|parse) chat template|chat template is not supported"
        r"|common_chat_templates_init: error",
    ),
    _rule(
        Cause.LORA,
        r"does not exist in base model|LoRA arch mismatch|hint: maybe wrong base model"
        r"|expect general\.type to be 'adapter'",
    ),
    _rule(Cause.DRAFT_MODEL, r"draft model .*(?:is not compatible|must match|must be)"),
    _rule(Cause.PROJECTOR, r"mismatch between text model .* and mmproj"),
    # Memory: a GPU's own words first, as general ones follow them.
    _rule(
        Cause.OUT_OF_GPU_MEMORY,
        r"cudaMalloc failed: out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
        rf"|(?:unable|failed) to allocate {_GPU_BUFFER} buffer"
        r"|ErrorOutOfDeviceMemory|Device memory allocation of size \d+ failed"
        r"|ggml_(?:backend_)?metal\w*: (?:error: )?failed to allocate|BufferCallbackErrorOutOfMemory",
    ),
    # A failed lock and failed pinning are only warnings.
    _rule(
        Cause.OUT_OF_MEMORY,
        r"^(?!.*(?:mlock|pinned)).*(?:std::bad_alloc|insufficient memory|(?:failed|unable) to allocate"
        r"|[Cc]annot allocate memory|ErrorOutOfHostMemory|\b[Oo]ut of memory)",
    ),
    # A second file's trouble also shows as trouble with a file.
    _rule(Cause.LORA, r"failed to (?:load|apply) lora adapter"),
    _rule(Cause.DRAFT_MODEL, r"failed to (?:load draft model|create draft context)"),
    _rule(Cause.PROJECTOR, r"[Ff]ailed to load (?:CLIP|multimodal) model|clip_init: failed to load"),
    # The file.
    _rule(
        Cause.UNKNOWN_ARCHITECTURE,
        r"unknown model architecture: '([^']{1,60})'",
        f"This llama-server doesn't know models of the kind {{what}}. {_NEWER}",
    ),
    _rule(
        Cause.UNKNOWN_ARCHITECTURE,
        r"unknown (?:pre-)?tokenizer type: '[^']*'|has invalid ggml type \d+|only supports up to version"
        r"|wrong number of tensors; expected|unknown projector type",
    ),
    _rule(
        Cause.NO_FILE,
        r"failed to open GGUF file '?([^'(]*[^'( ])|there is no file '([^']+)'"
        r"|gguf_init_from_file\w*: failed to open",
        "The file {what} isn't there or can't be read. Put it back, then scan the folders.",
    ),
    _rule(
        Cause.BAD_FILE,
        r"invalid magic characters|failed to read (?:magic|header|key-value pairs|tensor (?:info|data))"
        r"|is not within the file bounds|model is corrupted|check_tensor_dims: tensor|missing tensor '"
        r"|key not found in model|unexpectedly reached end of file|tensor '.*' has (?:invalid (?:offset|data)|wrong)"
        r"|(?:invalid|illegal) split (?:file|count)|error loading model (?:hyperparameters|vocabulary)",
    ),
    _rule(
        Cause.PORT_IN_USE,
        r"couldn't bind (?:HTTP |to )?(?:server )?socket(?:, hostname: (\S+), port: (\d+))?"
        r"|[Aa]ddress already in use",
        "It couldn't listen at {what}: another program has the port, or the address isn't that machine's.",
    ),
    _rule(
        Cause.WRONG_FLAG,
        r"^error: (?:invalid argument|unknown argument|unrecognized arguments): (-\S+)"
        r"|^error: argument (?:-[\w-]+/)*(--[\w-]+): "
        r"|error while handling argument \"(-[^\"]+)\"|expected value for argument",
        "The llama-server of that machine doesn't take {what}, or not with that value.",
    ),
    _rule(
        Cause.GPU_GONE,
        r"CUDA error: (?:no CUDA-capable device|unknown error|unspecified launch failure|initialization error"
        r"|all CUDA-capable devices are busy|CUDA driver version|system not yet initialized|.*(?:ECC|is lost))"
        r"|ErrorDeviceLost|GPU has fallen off the bus|\bXid\b|invalid device: "
        r"|invalid value for main_gpu: \d+ \(available devices: ",
    ),
    _rule(
        Cause.ENGINE_FAULT,
        r"GGML_ASSERT\(|GGML_ABORT|CUDA error: |terminate called after throwing|Segmentation fault|double free",
    ),
)

# Each start begins with such a line (`instance_log.opened`); what stands before belongs to an earlier one.
_START = re.compile(r"^--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: ")
# What stands before these was got over.
_OVERCOME = re.compile(r"retrying without pipeline parallelism|: model loaded$|server is listening on ")
# Time since the start and level, as newer builds write them before each line.
_PREFIX = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} [A-Z] +")


def of(
    lines: Sequence[str], *, exit_status: int | None = None, memory_kills: int | None = None
) -> Diagnosis | None:
    """The cause that a log and the end of its process show; None where they show none.

    `exit_status`: as `subprocess` has it, negative for a signal; None where nobody knows. `memory_kills`: how many
    processes the kernel has killed for want of memory since this one was started, None where it doesn't say.
    """
    signum = _signal(exit_status)
    if signum == signal.SIGILL:
        return _plain(Cause.ILLEGAL_INSTRUCTION)
    said = _of_lines(_last_start(lines))
    if said is not None or signum is None:
        return said
    if signum == signal.SIGKILL and memory_kills != 0:
        return Diagnosis(
            Cause.OUT_OF_MEMORY,
            "It was killed from outside, as the system does when a machine runs out of memory.",
            is_guess=True,
        )
    if signum == signal.SIGBUS:
        return Diagnosis(
            Cause.BAD_FILE,
            "The model's file changed, or its disk failed, while it was being read.",
            is_guess=True,
        )
    return _plain(Cause.ENGINE_FAULT) if signum in (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE) else None


def known(cause: str, lines: Sequence[str]) -> Diagnosis | None:
    """The diagnosis once made, with whatever of it the log still shows. None for what isn't a cause."""
    try:
        stated = Cause(cause)
    except ValueError:
        return None
    return _of_lines(_last_start(lines), only=stated) or _plain(stated)


def _of_lines(lines: Sequence[str], only: Cause | None = None) -> Diagnosis | None:
    for rule in _RULES:
        shown = _matches(lines, rule.pattern) if only in (None, rule.cause) else []
        if not shown:
            continue
        subject = ":".join(group for group in shown[0].groups() if group)
        words = rule.words.format(what=subject) if subject or "{what}" not in rule.words else ""
        others = [one.pattern for one in _RULES if one.cause == rule.cause]
        evidence = [line for line in lines if any(pattern.search(line) for pattern in others)]
        return Diagnosis(rule.cause, words or _WORDS[rule.cause], _distinct(evidence), subject)
    return None


def _matches(lines: Iterable[str], pattern: re.Pattern[str]) -> list[re.Match[str]]:
    return [match for line in lines if (match := pattern.search(line))]


def _distinct(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.strip() for line in lines))[:_MOST_EVIDENCE]


def _last_start(lines: Sequence[str]) -> list[str]:
    """What the process wrote since it last began, or since it got over whatever it complained of; without prefixes."""
    rest: list[str] = []
    for line in lines[-_LOOKED_AT:]:
        if _START.match(line):
            rest.clear()
            continue
        text = _PREFIX.sub("", line)
        if _OVERCOME.search(text):
            rest.clear()
        rest.append(text)
    return rest


def _signal(exit_status: int | None) -> int | None:
    if exit_status is None:
        return None
    if exit_status < 0:
        return -exit_status
    return exit_status - _SHELL_SIGNAL if exit_status > _SHELL_SIGNAL else None


def _plain(cause: Cause) -> Diagnosis:
    return Diagnosis(cause, _WORDS[cause])
