"""The portal's own processes come and go under running models and unfinished answers."""

import os
import signal
import time

import psutil
import pytest

from tests.portal import Portal

pytestmark = [pytest.mark.portal, pytest.mark.slow, pytest.mark.timeout(300)]

CHATS = 3
PORTAL = ("web", "generator", "worker", "beat", "node")
ASK = """
from accounts.models import User
from chat import actions
from chat.models import Conversation
from models_admin.models import ServedModel
ServedModel.objects.update(answer_tokens=250)
served = ServedModel.objects.get(slug="smollm2-135m-instruct")
owner = User.objects.get(username="admin")
for number in range({chats}):
    conversation = Conversation.objects.create(owner=owner)
    actions.send(conversation, text=f"Tell a long story about the number {{number}}.", served=served)
"""


def answers(portal: Portal) -> list[tuple[str, str]]:
    return portal.query("SELECT status, text FROM chat_message WHERE role = 'assistant' ORDER BY created_at")


def until_written(portal: Portal, characters: int, timeout: float = 120) -> list[tuple[str, str]]:
    """Wait until each answer has grown by so much."""
    deadline = time.monotonic() + timeout
    before = [len(text) for _, text in answers(portal)]
    while True:
        now = answers(portal)
        grown = [len(text) - old for (_, text), old in zip(now, before, strict=True)]
        if all(more >= characters or status == "done" for (status, _), more in zip(now, grown, strict=True)):
            return now
        assert time.monotonic() < deadline, (now, portal.output())
        time.sleep(0.1)


def restart(portal: Portal, names: tuple[str, ...]) -> None:
    """End them; the supervisor starts them again."""
    before = {name: portal.pids[name] for name in names}
    for pid in before.values():
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 120
    while any(portal.pids.get(name) in (None, pid) for name, pid in before.items()):
        assert time.monotonic() < deadline, portal.output()
        time.sleep(0.05)


def test_the_portal_restarts_under_its_models_and_answers(own_portal: Portal) -> None:
    own_portal.env["DEMO_MODEL"] = "1"
    own_portal.start().wait_ready(models=1)
    own_portal.wait_output("llamaproj is ready at")
    [engine] = own_portal.llama_servers()
    own_portal.manage("shell", "-c", ASK.format(chats=CHATS))
    seen = until_written(own_portal, 20)
    for name in PORTAL:
        restart(own_portal, (name,))
        now = answers(own_portal)
        assert all(text.startswith(before) for (_, text), (_, before) in zip(now, seen, strict=True))
        seen = now
    restart(own_portal, PORTAL)
    own_portal.wait_ready(models=1)
    deadline = time.monotonic() + 150
    while [status for status, _ in answers(own_portal)] != ["done"] * CHATS:
        assert time.monotonic() < deadline, (answers(own_portal), own_portal.output())
        time.sleep(0.5)
    end = answers(own_portal)
    assert all(text.startswith(before) for (_, text), (_, before) in zip(end, seen, strict=True))
    assert own_portal.llama_servers() == [engine]
    assert psutil.Process(engine).status() != psutil.STATUS_ZOMBIE
