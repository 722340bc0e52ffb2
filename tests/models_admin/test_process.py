import os
import subprocess

import pytest

from models_admin.engine import process


def test_the_status_of_one_that_is_just_ending_is_waited_for() -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 0.2; exit 3"])
    process.keep(child)
    assert process.find(child.pid, process.mark("another")) is None
    assert process.ending_of(child.pid).words == "The process ended with status 3."
    assert child.pid not in process._children


def test_one_that_does_not_end_is_not_forgotten() -> None:
    child = subprocess.Popen(["sleep", "60"])
    process.keep(child)
    assert process.ending_of(child.pid).status is None
    assert process._children[child.pid] is child
    child.kill()
    assert process.ending_of(child.pid).words == "The process was ended by SIGKILL."


def test_one_whose_environment_cannot_be_read_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = process.mark("an-instance")
    looks = [True, False, False]
    monkeypatch.setattr(process, "_has_environment", lambda _: looks.pop())
    child = subprocess.Popen(["sleep", "60"], env=os.environ | mark)
    process.keep(child)
    assert process.find(child.pid, mark) is not None
    assert looks == []
    child.kill()
    assert process.ending_of(child.pid).words == "The process was ended by SIGKILL."
    assert process.find(child.pid, mark) is None
