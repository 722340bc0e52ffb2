import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from django.test import Client

from accounts.models import User
from llamaproj import env
from models_admin import lifecycle
from models_admin.engine import process
from models_admin.instances.patience import Patience
from models_admin.models import Instance, ModelFile, Node, ServedModel
from tests.fake_engine import as_binary

# A fake engine is a Python process on a busy machine: generous limits, tight steps.
HASTY = Patience(start=20, silent=1.0, drain=3.0, term=1.0, ready_long=0.5, crashes=3, backoff_first=0.05)


@pytest.fixture
def node(db: None) -> Node:
    return Node.objects.create(
        name=env.NODE_NAME,
        memory_bytes=2**34,
        cpu_count=2,
        model_folders=["/"],
        programs=["/opt/llama-server"],
    )


@pytest.fixture
def served(node: Node, tmp_path: Path) -> ServedModel:
    """A model whose file is there, though only a fake engine would serve it."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    file = ModelFile.objects.create(
        node=node, path=str(path), size_bytes=4, modified_at="2026-01-01T00:00:00Z", quantization="Q4_1"
    )
    return ServedModel.objects.create(slug="fake-model", name="Fake", file=file, context_tokens=1024, slots=2)


@pytest.fixture
def admin(db: None) -> User:
    return User.objects.create_superuser("boss")


@pytest.fixture
def member(db: None) -> User:
    return User.objects.create_user("member")


@pytest.fixture
def staff(client: Client, admin: User) -> Client:
    client.force_login(admin)
    return client


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the fake engine this machine's llama-server; call it to say how it behaves."""
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(as_binary(tmp_path)))

    def conduct(**how: object) -> None:
        monkeypatch.setenv("FAKE_ENGINE", json.dumps(how))

    conduct()
    return conduct


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """End every llama-server a test has left behind."""
    children = process._children
    yield
    for found in process.with_mark(process.mark_of_all()):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.kill()
            found.wait(30)
    for child in children.values():
        child.wait(30)
    children.clear()


class Passes:
    """Runs passes over the node as its worker would."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.patience = HASTY

    def once(self) -> float | None:
        return lifecycle.reconcile(self.node.name, self.patience)

    def until(self, done: Callable[[], bool], limit_s: float = 90.0) -> None:
        deadline = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < deadline, [
                (one.state, one.reason) for one in Instance.objects.filter(node=self.node)
            ]
            again_in = self.once()
            time.sleep(min(0.05, again_in or 0.05))


@pytest.fixture
def passes(node: Node) -> Passes:
    return Passes(node)


def want(served: ServedModel, replicas: int) -> None:
    ServedModel.objects.filter(pk=served.pk).update(desired_replicas=replicas)


def only(served: ServedModel) -> Instance:
    """The model's one replica that isn't history."""
    return served.instances.current().get()


def state_of(served: ServedModel) -> str:
    instance = served.instances.current().first()
    return instance.state if instance else "stopped"


def living(instance: Instance) -> psutil.Process | None:
    return process.find(instance.pid, process.mark(str(instance.pk)))
