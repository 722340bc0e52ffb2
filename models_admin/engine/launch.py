"""How a replica is started: a validated specification, its argv, a port, a process in its own session."""

import errno
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
from models_admin.engine import instance_log, named_files, process
from models_admin.engine.engine import Engine
from models_admin.engine.launch_config import LaunchConfig
from models_admin.errors import NoPort
from models_admin.models import LaunchParameters

_PORT_TRIES = 50
_MAX_EXTRA_FLAGS = 40
# Copies a slot keeps of what it can't rewind (sliding windows, recurrent states), two for each turn. The engine's own
# 32 may take many times the memory of the caches.
CONTEXT_CHECKPOINTS = 4
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


@dataclass(frozen=True)
class LaunchSpec:
    """Everything that decides a replica's command line."""

    model_path: str
    alias: str
    host: str
    port: int
    config: LaunchConfig
    slot_save_path: str = ""
    projector_path: str = ""

    def __post_init__(self) -> None:
        if not Path(self.model_path).is_absolute():
            raise InvalidInput("The model's path must be absolute.")
        if not re.fullmatch(r"[\w.-]{1,100}", self.alias) or self.alias.startswith("-"):
            raise InvalidInput("The model's short name holds a sign that isn't allowed.")
        if not 0 < self.port < 65536 or self.config.context_tokens < 1 or self.config.slots < 1:
            raise InvalidInput("Port, context size and slots must be positive numbers.")
        check_extra_flags(self.config.extra_flags)
        draft = [self.config.draft_model] if self.config.draft_model else []
        named_files.check_readable([*self.config.lora, *draft])

    def argv(self, engine: Engine) -> list[str]:
        """The command as a list; flags that an older build doesn't know are left out where it can do without."""
        config = self.config
        argv = [*engine.command, "--model", self.model_path, "--host", self.host, "--port", str(self.port)]
        argv += ["--ctx-size", str(config.context_tokens * config.slots), "--parallel", str(config.slots)]
        for names, value, needed in self._wanted():
            known = next((name for name in names if engine.knows(name)), None)
            if known is None and needed:
                raise InvalidInput(f"The llama-server of this node ({engine.name}) doesn't know {names[0]}.")
            if known is not None:
                argv += [known] if value is True else [known, str(value)]
        return [*argv, *config.extra_flags]

    def _wanted(self) -> list[tuple[tuple[str, ...], str | int | bool, bool]]:
        """Flags by their names, newest first; their values, True for a switch; whether it can't do without."""
        config = self.config
        strict = config.isolation == LaunchParameters.Isolation.STRICT
        # The name of a built-in template is a word; whatever holds more is a template.
        jinja = "{" in config.chat_template
        can_do_without: list[tuple[tuple[str, ...], str | int | bool | None]] = [
            (("--no-ui", "--no-webui"), True),
            (("--metrics",), True),
            (("--slots",), True),
            (("--no-kv-unified",), True),
            (("--alias",), self.alias),
            (("--batch-size",), config.batch_tokens),
            (("--ubatch-size",), min(config.ubatch_tokens, config.batch_tokens)),
            (("--slot-save-path",), self.slot_save_path),
            (("--cache-ram",), 0 if strict else config.prompt_cache_mib),
            (("--ctx-checkpoints", "--swa-checkpoints"), CONTEXT_CHECKPOINTS),
            (("--jinja",), jinja),
        ]
        needed: list[tuple[tuple[str, ...], str | int | bool | None]] = [
            (("--threads",), config.threads),
            (("--threads-batch",), config.threads_batch),
            (("--gpu-layers", "--n-gpu-layers"), config.gpu_layers),
            (("--split-mode",), config.split_mode),
            (("--tensor-split",), config.tensor_split),
            (("--main-gpu",), config.main_gpu),
            (("--flash-attn",), "" if config.flash_attention == "auto" else config.flash_attention),
            (("--cache-type-k",), "" if config.cache_type_k == "f16" else config.cache_type_k),
            (("--cache-type-v",), "" if config.cache_type_v == "f16" else config.cache_type_v),
            (("--no-cache-prompt",), strict),
            (("--embeddings", "--embedding"), config.embeddings),
            (("--pooling",), config.pooling),
            (("--reranking", "--rerank"), config.reranking),
            (("--mmproj",), self.projector_path if config.vision else ""),
            (("--model-draft",), config.draft_model),
            (("--chat-template",), config.chat_template),
            *((("--lora",), path) for path in config.lora),
        ]
        given = set(config.extra_flags)
        return [
            (names, value, is_needed)
            for flags, is_needed in ((can_do_without, False), (needed, True))
            for names, value in flags
            if value is not None and value is not False and value != "" and not given.intersection(names)
        ]


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


def free_port(host: str, taken: frozenset[int], ports: range) -> int:
    """One of `ports` that nobody listens on and no row has. Another program may still be quicker: then the start
    fails and the next one gets another port. Raises `NoPort`."""
    problem = None
    for port in random.sample(ports, min(_PORT_TRIES, len(ports))):  # no secret
        if port in taken:
            continue
        try:
            with socket.socket(_family(host)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
                return port
        except OSError as error:
            problem = error
    if isinstance(problem, socket.gaierror) or (problem and problem.errno == errno.EADDRNOTAVAIL):
        raise NoPort(
            f"This machine has no address {host}. Leave the address to listen at empty, or name one it has."
        )
    raise NoPort(f"No port from {ports.start} to {ports.stop - 1} is free at {host}. Allow more of them.")


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
    return _slots() / instance_id


def with_slots() -> set[str]:
    """The ids of the instances that have such a folder here."""
    return {path.name for path in _slots().glob("*")}


def _slots() -> Path:
    return env.DATA_DIR / "slots"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
