"""What `up` refuses before it starts anything, and in which words."""

import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from llamaproj import env
from llamaproj.up import postgres, preflight
from llamaproj.up.errors import StartError


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_free_port_is_accepted_and_an_occupied_one_named(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(env, "PORT", listener.getsockname()[1])
        with pytest.raises(StartError, match=f"Port {env.PORT} on 127.0.0.1 is taken"):
            preflight.check_port()
    preflight.check_port()


def test_a_host_that_is_not_this_machine_is_named(monkeypatch):
    monkeypatch.setattr(env, "HOST", "no.such.host.invalid")
    with pytest.raises(StartError, match=r"no\.such\.host\.invalid"):
        preflight.check_port()


def test_only_one_holds_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "DATA_DIR", tmp_path)
    preflight.make_folders()
    lock = preflight.lock_data_dir()
    with pytest.raises(StartError, match=f"already runs on .* \\(process {os.getpid()}\\)"):
        preflight.lock_data_dir()
    os.close(lock)
    os.close(preflight.lock_data_dir())


def test_nobody_else_reaches_the_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "DATA_DIR", tmp_path)
    monkeypatch.setattr(env, "socket_dir", lambda: tmp_path / "run")
    (tmp_path / "run").mkdir(mode=0o755)
    preflight.make_folders()
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    (tmp_path / "run").chmod(0o770)
    preflight.make_folders()
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o770


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "DATA_DIR", tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100 * 1024**2, 99 * 1024**2, 1024**2))
    with pytest.raises(StartError, match="is full: 1 MiB free"):
        preflight.make_folders()


def test_a_data_folder_that_is_a_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "DATA_DIR", tmp_path / "file")
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="can't be used"):
        preflight.make_folders()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "doesn't exist"),
        ("#!/bin/sh\necho hello", "isn't a llama-server"),
        ("#!/bin/sh\necho 'version: 1'; exit 3", "isn't a llama-server"),
        ("no program at all", "can't be run"),
    ],
)
def test_a_wrong_engine_is_named(tmp_path, monkeypatch, text, words):
    path = tmp_path / "llama-server"
    if text:
        executable(path, text)
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(path))
    with pytest.raises(StartError, match=words):
        preflight.check_engine()


def test_an_engine_that_says_its_version_is_accepted(tmp_path, monkeypatch):
    path = executable(tmp_path / "llama-server", "#!/bin/sh\necho 'version: 6543 (0123abc)' >&2")
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(path))
    preflight.check_engine()


def test_an_engine_that_may_not_be_run_is_named(tmp_path, monkeypatch):
    path = tmp_path / "llama-server"
    path.write_text("")
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(path))
    with pytest.raises(StartError, match="isn't executable"):
        preflight.check_engine()


@pytest.mark.parametrize(
    ("variable", "url", "words"),
    [
        ("DATABASE_URL", "postgresql://somebody:secret@127.0.0.1:1/none", "database of DATABASE_URL"),
        ("REDIS_URL", "redis://:secret@127.0.0.1:1/0", "Redis of REDIS_URL"),
        ("REDIS_URL", "nonsense", "Redis of REDIS_URL"),
    ],
)
def test_an_outside_service_that_does_not_answer_is_named_without_its_password(
    monkeypatch, variable, url, words
):
    monkeypatch.setenv(variable, url)
    with pytest.raises(StartError, match=words) as refusal:
        preflight.check_services()
    assert "secret" not in str(refusal.value)


def test_without_the_embedded_database_one_must_be_given(monkeypatch):
    monkeypatch.setattr(postgres, "is_installed", lambda: False)
    with pytest.raises(StartError, match="set DATABASE_URL, or install"):
        preflight.check_services()
