"""`llamaproj.env` is the only reader of the environment, and `.env.example` names all it reads."""

import os
import re
import subprocess
import sys

import pytest

from llamaproj import env

EXAMPLE = (env.BASE_DIR / ".env.example").read_text()
READ = re.compile(r"""(?:_read\(|os\.environ\.get\()\s*"([A-Z_]+)\"""")


def python_files():
    for app in ("accounts", "chat", "gateway", "llamaproj", "models_admin", "monitoring"):
        yield from (env.BASE_DIR / app).rglob("*.py")


def test_the_example_names_every_variable_and_no_other():
    read = set(READ.findall((env.BASE_DIR / "llamaproj" / "env.py").read_text()))
    assert "DATA_DIR" in read
    assert set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE)) == read


def test_nobody_else_reads_the_environment():
    # Each sets the variable that names the settings or hands the environment on; the engine is a program of its own.
    allowed = {
        "llamaproj/env.py",
        "llamaproj/asgi.py",
        "llamaproj/celery.py",
        "llamaproj/cli.py",
        "llamaproj/up/program.py",
        "models_admin/engine/embedded_engine.py",
    }
    readers = {
        str(path.relative_to(env.BASE_DIR))
        for path in python_files()
        if re.search(r"os\.(environ|getenv)", path.read_text())
    }
    assert readers <= allowed


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PORT", "0", "PORT='0' can't be used: a port is a number from 1 to 65535"),
        ("DEBUG", "perhaps", "DEBUG='perhaps' can't be used: use 1 or 0"),
        ("ASGI_SERVER", "gunicorn", "use one of uvicorn, daphne, granian"),
    ],
)
def test_a_wrong_value_is_one_sentence(variable, value, words):
    result = subprocess.run(
        [sys.executable, "-m", "llamaproj.cli", "help"],
        cwd=env.BASE_DIR,
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_sockets_of_a_deep_data_folder_get_a_short_one(tmp_path):
    assert env.socket_dir(tmp_path) == tmp_path / "run"
    deep = tmp_path / ("x" * 100)
    assert len(str(env.socket_dir(deep))) < 80
    assert env.socket_dir(deep) != env.socket_dir(deep / "y")
