"""Files that a launch configuration names by path: programs to run, adapters and draft models to read.

Denied unless the machine itself allows it: files below its model folders, programs of LLAMA_SERVER_BIN and
LLAMA_SERVER_BINS. Each machine says what it allows (`Node.model_folders`, `Node.programs`), so that a wrong path is
refused where it is typed; before anything is started the machine asks its own settings again.
"""

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from llamaproj import env
from llamaproj.errors import InvalidInput
from models_admin.errors import EngineMissing
from models_admin.models import LaunchParameters, Node


def programs() -> list[str]:
    """The llama-servers that a model may name on this machine."""
    own = shutil.which(env.LLAMA_SERVER_BIN) if env.LLAMA_SERVER_BIN else None
    return list(dict.fromkeys([*([str(Path(own).absolute())] if own else []), *env.LLAMA_SERVER_BINS]))


def complaints(layer: LaunchParameters) -> Iterator[tuple[str, str]]:
    """What no machine allows: the parameter and a sentence."""
    named = [*(("lora", path) for path in layer.lora), ("draft_model", layer.draft_model)]
    if not layer.binary and not any(path for _, path in named):
        return
    nodes = list(Node.objects.values_list("model_folders", "programs"))
    folders = sorted({folder for known, _ in nodes for folder in known})
    for param, path in named:
        if path and not _is_inside(path, folders):
            where = f" ({', '.join(folders[:3])})" if folders else ""
            yield param, f"{path} isn't in a model folder of any machine{where}."
    if layer.binary and not any(layer.binary in known for _, known in nodes):
        yield (
            "binary",
            f"No machine allows {layer.binary}; its LLAMA_SERVER_BINS names the programs that may be run.",
        )


def check_readable(paths: Iterable[str]) -> None:
    """Raise `InvalidInput` for one that is outside this machine's model folders."""
    folders = [str(folder) for folder in env.MODELS_DIRS]
    for path in paths:
        if not _is_inside(path, folders):
            raise InvalidInput(f"{path} isn't in a model folder of this machine ({', '.join(folders)}).")


def check_program(path: str) -> None:
    """Raise `EngineMissing` for one that this machine doesn't allow, or that everybody on it could replace."""
    if path not in programs():
        raise EngineMissing(
            f"This machine doesn't allow {path}: add it to LLAMA_SERVER_BINS there and start its worker again."
        )
    if not os.access(path, os.X_OK) or not Path(path).is_file():
        raise EngineMissing(f"{path} isn't a program that can be run on this machine.")
    for place in (Path(path).resolve(), Path(path).resolve().parent):
        mode = place.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise EngineMissing(f"{path} isn't run, because everybody on the machine may write to {place}.")


def _is_inside(path: str, folders: Iterable[str]) -> bool:
    """True below one of them. Links inside a model folder are its owner's word."""
    pure = PurePosixPath(path)
    if ".." in pure.parts:
        return False
    return any(pure != PurePosixPath(folder) and pure.is_relative_to(folder) for folder in folders)
