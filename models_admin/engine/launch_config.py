"""What holds for one model's launch: its own parameters, over the portal's, over what is written here.

    config = launch_config.of(served)
    config.context_tokens, config.slots, …

A replica keeps the `snapshot` it was launched with; one whose snapshot is no longer the model's is outdated.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from models_admin.models import Instance, LaunchParameters, PortalConfig, ServedModel

# Who waits how long concerns the reconciler, not the process: a change restarts nothing.
_NOT_LAUNCHED = frozenset(
    {"first_port", "last_port", "start_timeout_s", "health_timeout_s", "drain_timeout_s"}
)
# What decides how much memory a replica takes.
_ABOUT_MEMORY = (
    "context_tokens", "slots", "batch_tokens", "ubatch_tokens", "gpu_layers", "flash_attention", "cache_type_k",
    "cache_type_v", "prompt_cache_mib", "embeddings", "reranking", "vision", "lora", "draft_model", "extra_flags",
)  # fmt: skip


@dataclass(frozen=True)
class LaunchConfig:
    """Every parameter with its value. None: llama-server decides. Names and units as in `LaunchParameters`."""

    binary: str = ""
    host: str = ""
    # Below the ports that systems hand out to outgoing connections.
    first_port: int = 20_000
    last_port: int = 29_999
    context_tokens: int = 4096
    slots: int = 4
    batch_tokens: int = 2048
    ubatch_tokens: int = 512
    threads: int | None = None
    threads_batch: int | None = None
    gpu_layers: int | None = None
    split_mode: str = ""
    tensor_split: str = ""
    main_gpu: int | None = None
    flash_attention: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    # The engine's own default of 8 GiB for each replica would make every estimate worthless.
    prompt_cache_mib: int = 256
    isolation: str = LaunchParameters.Isolation.SHARED
    embeddings: bool = False
    pooling: str = ""
    reranking: bool = False
    vision: bool = True
    lora: tuple[str, ...] = ()
    draft_model: str = ""
    chat_template: str = ""
    extra_flags: tuple[str, ...] = ()
    start_timeout_s: int = 120
    health_timeout_s: int = 30
    # A long answer on a slow machine takes minutes; whoever replaces or unloads a replica can wait.
    drain_timeout_s: int = 600

    def snapshot(self) -> dict[str, Any]:
        """What a process is launched with, as JSON has it."""
        chosen = {name: value for name, value in asdict(self).items() if name not in _NOT_LAUNCHED}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}

    def memory_key(self) -> str:
        """A digest of what decides about memory: launches with one key take the same."""
        about = {name: getattr(self, name) for name in _ABOUT_MEMORY}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


NAMES = tuple(field.name for field in fields(LaunchConfig))
_BUILT_IN = LaunchConfig()


def of(served: ServedModel, portal: PortalConfig | None = None) -> LaunchConfig:
    """What holds for the model. Reads the portal's row unless given."""
    return _merged(portal or PortalConfig.current(), served)


def of_portal(portal: PortalConfig) -> LaunchConfig:
    """What holds for a model that says nothing itself."""
    return _merged(portal)


def is_outdated(instance: Instance, config: LaunchConfig) -> bool:
    """True where the replica was launched otherwise than `config`, from other content, or was asked to start anew.

    What its snapshot doesn't name, because the portal was older then, was what is written here.
    """
    launched = instance.launched
    if not launched:
        return False
    file = instance.file or instance.served.file
    content = launched.get("content")
    if file is not None and content and file.content_id and content != file.content_id:
        return True
    return "asked_again" in launched or of_snapshot(launched).snapshot() != config.snapshot()


def of_snapshot(launched: Mapping[str, Any]) -> LaunchConfig:
    """What a process was launched with, as its `snapshot` has it; what that lacks is as it is written here."""
    values: dict[str, Any] = {name: launched[name] for name in NAMES if name in launched}
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return LaunchConfig(**values)


def _merged(*layers: LaunchParameters) -> LaunchConfig:
    """Later layers win; one that says nothing leaves what stands."""
    values: dict[str, Any] = {}
    for layer in layers:
        for name in NAMES:
            value = getattr(layer, name)
            if value not in (None, "", []):
                values[name] = tuple(value) if isinstance(value, list) else value
    return LaunchConfig(**values)
