"""From a row that waits to a llama-server that loads."""

from pathlib import Path

import psutil
import structlog

from llamaproj.errors import LlamaProjError
from models_admin import events, secret_box
from models_admin.engine import engine, launch, process
from models_admin.engine.launch_config import LaunchConfig
from models_admin.errors import NoPort
from models_admin.instances.turn import Turn
from models_admin.models import Instance, ModelFile
from models_admin.states import InstanceState as S

log = structlog.get_logger(__name__)


def start(turn: Turn, instance: Instance) -> None:
    """Start its process, where there is a file, room and an engine for it."""
    if instance.node is None:
        # Its place is the scheduler's to find.
        return
    file = instance.file or instance.served.file
    if file is None or not Path(file.path).is_file():
        turn.explain(instance, f"The file {file.path if file else ''} isn't there.")
        if instance.file and instance.file != instance.served.file:
            # Another machine may still have it.
            turn.set(instance, node=None, file=None)
        return
    if _is_short(turn, instance):
        # Another machine may have room by now, or this one again in a moment.
        turn.set(instance, node=None, file=None, reason="Waiting for free memory.")
        events.instance_changed(instance.served_id, instance.pk)
        return
    config = turn.config(instance)
    try:
        found_engine = engine.find(config.binary)
        spec = _spec(turn, instance, file, config)
        spec.argv(found_engine)
    except NoPort as error:
        # Others may let go of one.
        turn.explain(instance, error.message)
        return
    except LlamaProjError as error:
        # What it would have been launched with: other settings are another try.
        instance.move_to(S.FAILED, error.message, launched=config.snapshot() | {"content": file.content_id})
        return
    launched = config.snapshot() | {"content": file.content_id}
    api_key = launch.new_api_key()
    # Said before it is done: a worker that dies in between leaves a row that tells its successor to look.
    moved = instance.move_to(
        S.STARTING,
        "Loading the model.",
        port=spec.port,
        api_key_encrypted=secret_box.seal(api_key),
        launched=launched,
        pid=None,
        pid_created=None,
        started_at=turn.now,
        ready_at=None,
        unhealthy_since=None,
        term_at=None,
        progress=0,
        cause="",
    )
    if not moved:
        return
    try:
        child = launch.spawn(spec, found_engine, instance_id=str(instance.pk), api_key=api_key)
    except OSError as error:
        turn.crashed(instance, f"It can't be started: {error.strerror or error}.")
        return
    turn.set(instance, pid=child.pid, pid_created=process.keep(child))
    log.info("started", instance=str(instance), pid=child.pid, port=spec.port, engine=found_engine.name)
    turn.look_again_in(0.25)


def adopt(turn: Turn, instance: Instance) -> bool:
    """Find the process that a worker spawned just before it died."""
    for found in process.with_mark(process.mark(str(instance.pk))):
        turn.set(instance, pid=found.pid, pid_created=found.create_time())
        return True
    return False


def _spec(turn: Turn, instance: Instance, file: ModelFile, config: LaunchConfig) -> launch.LaunchSpec:
    host = config.host or turn.node.address
    ports = range(config.first_port, config.last_port + 1)
    return launch.LaunchSpec(
        model_path=file.path,
        alias=instance.served.slug,
        host=host,
        port=launch.free_port(host, _taken_ports(turn), ports),
        config=config,
        slot_save_path=str(launch.slots_of(str(instance.pk))),
        projector_path=file.projector.path if file.projector else "",
    )


def _is_short(turn: Turn, instance: Instance) -> bool:
    """True where the memory it was promised is gone by now: others than the portal use it, too."""
    if turn.node.gpus or instance.expected_bytes is None:
        return False
    loading_ones = Instance.objects.filter(node=turn.node, state=S.STARTING)
    promised = sum(max(0, (other.expected_bytes or 0) - (other.memory_bytes or 0)) for other in loading_ones)
    return instance.expected_bytes > psutil.virtual_memory().available - promised


def _taken_ports(turn: Turn) -> frozenset[int]:
    ports = Instance.objects.filter(node=turn.node, port__isnull=False).values_list("port", flat=True)
    return frozenset(port for port in ports if port is not None)
