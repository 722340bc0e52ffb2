"""How a replica is started: a validated specification, its argv, a port, a process in its own session."""

import contextlib
import random
import re
import secrets
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamaproj import env
from llamaproj.errors import InvalidInput
from models_admin import instance_log, process
from models_admin.engine import Engine

# Below the ports that systems hand out to outgoing connections.
_PORTS = range(20_000, 30_000)
_PORT_TRIES = 50
_MAX_EXTRA_FLAGS = 40
_VALUE = re.compile(r"(-?\d+(\.\d+)?|[A-Za-z0-9][A-Za-z0-9._,:=+/-]{0,127})")

# What an administrator may add. Not among them: whatever changes where the server listens, who may ask it, what it
# reads or writes, or what the portal itself decides.
# fmt: off
SWITCHES = frozenset((
    "--cache-prompt", "--no-cache-prompt", "--cont-batching", "--no-cont-batching", "--context-shift",
    "--no-context-shift", "--cpu-moe", "--embedding", "--embeddings", "--jinja", "--no-jinja",
    "--kv-offload", "--no-kv-offload", "--mlock", "--no-mmap", "--no-op-offload", "--no-repack",
    "--no-warmup", "--warmup", "--perf", "--no-perf", "--rerank", "--reranking", "--swa-full",
    "--no-prefill-assistant",
))
OPTIONS = frozenset((
    "--cache-ram", "--cache-reuse", "--cache-type-k", "--cache-type-v", "--chat-template",
    "--checkpoint-min-step", "--ctx-checkpoints", "--defrag-thold", "--device", "--draft-max",
    "--draft-min", "--dynatemp-exp", "--dynatemp-range", "--flash-attn", "--frequency-penalty", "--keep",
    "--main-gpu", "--min-p", "--n-cpu-moe", "--n-predict", "--numa", "--override-kv", "--pooling",
    "--predict", "--presence-penalty", "--prio", "--reasoning-budget", "--reasoning-format",
    "--repeat-last-n", "--repeat-penalty", "--rope-freq-base", "--rope-freq-scale", "--rope-scale",
    "--rope-scaling", "--seed", "--slot-prompt-similarity", "--split-mode", "--temp", "--tensor-split",
    "--threads-batch", "--threads-http", "--timeout", "--top-k", "--top-p", "--yarn-attn-factor",
    "--yarn-beta-fast", "--yarn-beta-slow", "--yarn-ext-factor", "--yarn-orig-ctx",
))
# fmt: on

# Prompts of conversations that aren't in a slot are kept in memory; the engine's own default of 8 GiB for each
# replica would make every estimate worthless.
_PROMPT_CACHE_MIB = 256
PROMPT_CACHE_BYTES = _PROMPT_CACHE_MIB * 2**20


@dataclass(frozen=True)
class LaunchSpec:
    """Everything that decides a replica's command line."""

    model_path: str
    alias: str
    host: str
    port: int
    context_tokens: int
    slots: int
    batch_tokens: int = 2048
    ubatch_tokens: int = 512
    threads: int | None = None
    gpu_layers: int | None = None
    extra_flags: tuple[str, ...] = ()
    slot_save_path: str = ""

    def __post_init__(self) -> None:
        if not Path(self.model_path).is_absolute():
            raise InvalidInput("The model's path must be absolute.")
        if not re.fullmatch(r"[\w.-]{1,100}", self.alias) or self.alias.startswith("-"):
            raise InvalidInput("The model's short name holds a sign that isn't allowed.")
        if not 0 < self.port < 65536 or self.context_tokens < 1 or self.slots < 1:
            raise InvalidInput("Port, context size and slots must be positive numbers.")
        check_extra_flags(self.extra_flags)

    def argv(self, engine: Engine) -> list[str]:
        """The command as a list; flags that an older build doesn't know are left out where it can do without."""
        wanted: list[tuple[tuple[str, ...], list[str]]] = [
            (("--no-ui", "--no-webui"), []),
            (("--metrics",), []),
            (("--slots",), []),
            (("--no-kv-unified",), []),
            (("--alias",), [self.alias]),
            (("--batch-size",), [str(self.batch_tokens)]),
            (("--ubatch-size",), [str(min(self.ubatch_tokens, self.batch_tokens))]),
        ]
        if self.slot_save_path:
            wanted.append((("--slot-save-path",), [self.slot_save_path]))
        if self.threads is not None:
            wanted.append((("--threads",), [str(self.threads)]))
        if self.gpu_layers is not None:
            wanted.append((("--gpu-layers", "--n-gpu-layers"), [str(self.gpu_layers)]))
        if "--cache-ram" not in self.extra_flags:
            wanted.append((("--cache-ram",), [str(_PROMPT_CACHE_MIB)]))
        argv = [*engine.command, "--model", self.model_path, "--host", self.host, "--port", str(self.port)]
        argv += ["--ctx-size", str(self.context_tokens * self.slots), "--parallel", str(self.slots)]
        for names, values in wanted:
            if known := next((name for name in names if engine.knows(name)), None):
                argv += [known, *values]
        return [*argv, *self.extra_flags]


def check_extra_flags(flags: Sequence[str]) -> None:
    """Raise `InvalidInput` for a flag that isn't on the list, or lacks its value, or has a strange one."""
    if not isinstance(flags, list | tuple) or not all(isinstance(flag, str) for flag in flags):
        raise InvalidInput('Further flags are a list of texts, such as ["--mlock"].', param="extra_flags")
    if len(flags) > _MAX_EXTRA_FLAGS:
        raise InvalidInput(f"At most {_MAX_EXTRA_FLAGS} further flags are allowed.", param="extra_flags")
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if flag in SWITCHES:
            continue
        if flag not in OPTIONS:
            raise InvalidInput(f"The flag {flag[:60]!r} isn't allowed here.", param="extra_flags")
        if not rest or not _VALUE.fullmatch(rest.pop(0)):
            raise InvalidInput(f"The flag {flag} needs a plain value after it.", param="extra_flags")


def new_api_key() -> str:
    """A key for one run of one replica."""
    return secrets.token_urlsafe(32)


def free_port(host: str, taken: frozenset[int]) -> int:
    """A port that nobody listens on and no row has. Another program may still be quicker: then the start fails
    and the next one gets another port."""
    for port in random.sample(_PORTS, _PORT_TRIES):  # no secret
        if port in taken:
            continue
        with contextlib.suppress(OSError), socket.socket(_family(host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise OSError(f"no free port on {host}")


def spawn(spec: LaunchSpec, engine: Engine, *, instance_id: str, api_key: str) -> subprocess.Popen[bytes]:
    """Start the process in its own session, so that it outlives the worker. Raises `OSError`.

    The key goes through the environment, which other users can't read, not the command line, which everybody can.
    """
    argv = spec.argv(engine)
    if spec.slot_save_path:
        Path(spec.slot_save_path).mkdir(mode=0o700, parents=True, exist_ok=True)
    with instance_log.opened(instance_id, headline=" ".join(argv)) as log:
        return subprocess.Popen(
            argv,
            cwd=env.BASE_DIR,
            env=env.outside_environment() | process.mark(instance_id) | {"LLAMA_API_KEY": api_key},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def slots_of(instance_id: str) -> Path:
    """Where an instance's slots may be saved."""
    return env.DATA_DIR / "slots" / instance_id


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
