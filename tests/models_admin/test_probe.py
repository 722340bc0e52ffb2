import contextlib
import socket
import time
import uuid

from models_admin.engine.probe import SILENT, Health, looks_at
from models_admin.models import Instance, Node, ServedModel
from models_admin.states import InstanceState as S


def test_many_frozen_servers_cost_one_time_out() -> None:
    with contextlib.ExitStack() as open_ones:
        instances = []
        for _ in range(8):
            # It listens and never answers, as a process that was halted does.
            listener = open_ones.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listener.getsockname()[1]
            instances.append(
                Instance(pk=uuid.uuid4(), served=ServedModel(), node=Node(), state=S.READY, port=port)
            )
        began = time.monotonic()
        looks = looks_at(instances)
        assert time.monotonic() - began < 4 * 2.0, "one after the other it would be eight time-outs"
    assert [looks[one.pk] for one in instances] == [SILENT] * 8


def test_only_those_with_a_process_are_asked() -> None:
    waiting = Instance(pk=uuid.uuid4(), state=S.PENDING)
    assert looks_at([waiting]) == {}
    assert SILENT.health is Health.SILENT
