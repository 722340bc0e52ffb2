"""What this machine has, and how it says so: the heartbeat of its worker."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
from django.db.models import Q
from django.db.models.functions import Now

from llamaproj import env
from models_admin.engine import named_files, process
from models_admin.errors import NameTaken
from models_admin.models import SILENT_AFTER, Node
from models_admin.nodes.gpus import Nvml

_VERSION_TIMEOUT_S = 10
# llama-server prints "version: 6543 (0123abc)".
_VERSION = re.compile(r"^version: (.{1,80})$", re.MULTILINE)
_nvml = Nvml()


def facts(nvml: Nvml = _nvml) -> dict[str, Any]:
    """This machine as `Node`'s columns have it. GPUs whose driver doesn't know their memory count as full."""
    memory = psutil.virtual_memory()
    return {
        "address": env.NODE_ADDRESS or "127.0.0.1",
        "cpu_count": os.cpu_count() or 0,
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        "gpus": [
            {
                "index": index,
                "name": gpu.name,
                "memory_bytes": gpu.memory_total_bytes or 0,
                "free_bytes": max(0, (gpu.memory_total_bytes or 0) - (gpu.memory_used_bytes or 0)),
                "by_pid": {str(pid): count for pid, count in gpu.memory_by_pid.items() if count},
            }
            for index, gpu in enumerate(nvml.read())
        ],
        "engine": engine_name(),
        "model_folders": [str(folder) for folder in env.MODELS_DIRS],
        "programs": named_files.programs(),
    }


def this_node() -> Node:
    """This machine in the catalog. Only its worker's `register` says that it is alive."""
    return _written()


def register() -> Node:
    """Say that this machine's worker is alive, and what it has. Raises `NameTaken`."""
    return _written(last_seen=Now())


def leave() -> None:
    """Say that this machine's worker has ended, so that nobody waits for its silence to be noticed."""
    Node.objects.filter(name=env.NODE_NAME, machine=env.machine_id()).update(last_seen=Now() - SILENT_AFTER)


def check_name() -> None:
    """Raise `NameTaken` where another machine is alive under this one's name."""
    if Node.objects.alive().filter(name=env.NODE_NAME).exclude(_ours()).exists():
        raise NameTaken(
            f"Another machine is alive under the name {env.NODE_NAME}; choose another one (NODE_NAME, --name)."
        )


def is_ours(name: str) -> bool:
    """True where the node is this machine: what runs there can be seen here."""
    return Node.objects.filter(_ours(), name=name).exists()


def engine_name() -> str:
    """The llama-server that this machine has, with its version; empty where it has none."""
    if path := shutil.which(env.LLAMA_SERVER_BIN or "llama-server"):
        absolute = str(Path(path).absolute())
        return _version_of(absolute, Path(absolute).stat().st_mtime_ns)
    if not env.LLAMA_SERVER_BIN and importlib.util.find_spec("xllamacpp"):
        return f"embedded, xllamacpp {importlib.metadata.version('xllamacpp')}"
    return ""


def _written(**more: Any) -> Node:
    """Write the facts: one UPDATE. The first time, a row with the labels this machine brings along."""
    values = facts() | more | {"machine": env.machine_id()}
    free = Q(last_seen=None) | Q(last_seen__lt=Now() - SILENT_AFTER)
    known = Node.objects.filter(name=env.NODE_NAME)
    if not known.filter(_ours() | free).update(**values):
        labels = list(dict.fromkeys(env.NODE_LABELS))
        _, created = Node.objects.get_or_create(name=env.NODE_NAME, defaults=values | {"labels": labels})
        if not created:
            check_name()
    return known.get()


def _ours() -> Q:
    return Q(machine__in=["", env.machine_id()])


@lru_cache(maxsize=8)
def _version_of(path: str, mtime_ns: int) -> str:
    """Asked once for each build. One that doesn't tell has its name only: asking again would take as long again."""
    try:
        done = subprocess.run(
            [path, "--version"],
            env=env.outside_environment() | process.mark_of_all(),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return Path(path).name
    found = _VERSION.search((done.stdout + done.stderr).decode("utf-8", errors="replace"))
    return f"{Path(path).name} {found[1].strip()}" if found else Path(path).name
