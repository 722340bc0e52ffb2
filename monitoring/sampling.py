"""Takes a node's sample: the machine, its llama-servers, and what these say of themselves."""

import threading
from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.core.cache import cache
from django.utils import timezone

from llamaproj import env
from models_admin import events as model_events
from models_admin import notes
from models_admin.models import Instance, Node
from models_admin.states import InstanceState
from monitoring import events
from monitoring.engine_metrics import EngineReading, EngineWatch, Target
from monitoring.models import FRESH_FOR, Sample
from monitoring.readings import Process, ProcessId, Reading, Sampler

# One process samples a node (its worker); the counters of the sample before live here.
_sampler = Sampler(
    {"data": env.DATA_DIR}
    | {"models" if n == 1 else f"models {n}": f for n, f in enumerate(env.MODELS_DIRS, 1)}
)
_watch = EngineWatch()
_one_at_a_time = threading.Lock()


def sample(node_name: str) -> Sample | None:
    """Measure the node, keep the sample and announce it. None when a sample is being taken already."""
    if not _one_at_a_time.acquire(blocking=False):
        return None
    try:
        return _sample(Node.objects.get(name=node_name))
    finally:
        _one_at_a_time.release()


def _sample(node: Node) -> Sample:
    instances = list(node.instances.current().select_related("served", "node"))
    asked = _watch.ask(
        Target(str(instance.pk), instance.base_url, instance.api_key)
        for instance in instances
        if instance.state == InstanceState.READY and instance.port
    )
    reading = _sampler.read(
        {
            str(instance.pk): ProcessId(instance.pid, instance.pid_created)
            for instance in instances
            if instance.pid and instance.pid_created
        }
    )
    at = timezone.now()
    engines = _watch.collect(asked)
    taken = Sample(
        node=node,
        at=at,
        **_columns(reading, engines, instances),
        data=sample_data(reading, engines, instances),
    )
    taken.save()
    remember_metrics(node.name, at, engines)
    _tell_slots(engines, instances)
    events.sample_taken(node.name, at, taken.data)
    return taken


def sample_data(
    reading: Reading, engines: dict[str, EngineReading], instances: list[Instance]
) -> dict[str, Any]:
    """The sample as it is stored and sent: numbers in base units, None for what isn't known."""
    return {
        "cpu": {
            "percent": _short(reading.cpu_percent),
            "cores": [round(core, 1) for core in reading.core_percents],
        },
        "memory": {"used_bytes": reading.memory_used_bytes, "total_bytes": reading.memory_total_bytes},
        "load": [round(load, 2) for load in reading.load],
        "network": {
            "in_bytes_s": _short(reading.network_in_bytes_s),
            "out_bytes_s": _short(reading.network_out_bytes_s),
        },
        "disk": {
            "volumes": [asdict(volume) for volume in reading.volumes],
            "read_bytes_s": _short(reading.disk_read_bytes_s),
            "write_bytes_s": _short(reading.disk_write_bytes_s),
        },
        "gpus": [
            {
                "name": gpu.name,
                "percent": gpu.percent,
                "memory_used_bytes": gpu.memory_used_bytes,
                "memory_total_bytes": gpu.memory_total_bytes,
                "temperature_c": gpu.temperature_c,
                "power_w": _short(gpu.power_w),
            }
            for gpu in reading.gpus
        ],
        "instances": [
            _instance_data(instance, reading.processes.get(str(instance.pk)), engines.get(str(instance.pk)))
            for instance in instances
        ],
        "totals": {name: _short(value) for name, value in _totals(engines, instances).items()},
    }


def _instance_data(
    instance: Instance, process: Process | None, engine: EngineReading | None
) -> dict[str, Any]:
    engine = engine or EngineReading()
    return {
        "id": str(instance.pk),
        "served": instance.served_id,
        "slug": instance.served.slug,
        "name": instance.served.name,
        "state": instance.state,
        "pid": process and instance.pid,
        "cpu_percent": process and _short(process.cpu_percent),
        "memory_bytes": process and process.memory_bytes,
        "threads": process and process.threads,
        "gpu_memory_bytes": process and process.gpu_memory_bytes,
        "generated_tokens_s": _short(engine.generated_tokens_s),
        "prompt_tokens_s": _short(engine.prompt_tokens_s),
        "requests_processing": engine.requests_processing,
        "requests_deferred": engine.requests_deferred,
        "slots": engine.slots,
        "slots_busy": engine.slots_busy,
        "context_used_tokens": engine.context_used_tokens,
        "context_tokens": engine.context_tokens,
    }


def _columns(
    reading: Reading, engines: dict[str, EngineReading], instances: list[Instance]
) -> dict[str, Any]:
    gpus = [gpu.percent for gpu in reading.gpus if gpu.percent is not None]
    return {
        "cpu_percent": reading.cpu_percent,
        "memory_used_bytes": reading.memory_used_bytes,
        "load_1": reading.load[0],
        "network_in_bytes_s": reading.network_in_bytes_s,
        "network_out_bytes_s": reading.network_out_bytes_s,
        "gpu_percent": sum(gpus) / len(gpus) if gpus else None,
    } | _totals(engines, instances)


def _totals(engines: dict[str, EngineReading], instances: list[Instance]) -> dict[str, float | None]:
    """Over the node's llama-servers. No server at all is no tokens, silent ones are nothing known."""
    idle = not any(instance.state == InstanceState.READY for instance in instances)
    fields = ("generated_tokens_s", "prompt_tokens_s", "requests_processing", "requests_deferred")
    totals: dict[str, float | None] = {}
    for name in fields:
        known = [value for engine in engines.values() if (value := getattr(engine, name)) is not None]
        totals[name] = float(sum(known)) if known or idle else None
    return totals


def _short(value: float | None) -> float | None:
    return value if value is None else round(value, 2)


def _tell_slots(engines: dict[str, EngineReading], instances: list[Instance]) -> None:
    """Hand the slots on to the models pages, so that each llama-server is asked for them once."""
    for instance in instances:
        engine = engines.get(str(instance.pk))
        if engine and engine.each_slot is not None and notes.tell_slots(instance.pk, engine.each_slot):
            model_events.slots_changed(instance.served_id, instance.pk)


def remember_metrics(node_name: str, at: datetime, engines: dict[str, EngineReading]) -> None:
    """Keep the servers' own metrics for `/metrics`, which must not wait for a server."""
    metrics = {key: engine.metrics for key, engine in engines.items() if engine.metrics}
    cache.set(_metrics_key(node_name), metrics, timeout=FRESH_FOR.total_seconds())


def remembered_metrics(node_name: str) -> dict[str, dict[str, float]]:
    """llama.cpp's metrics of each instance of the node, as its newest sample found them."""
    remembered: dict[str, dict[str, float]] = cache.get(_metrics_key(node_name), {})
    return remembered


def _metrics_key(node_name: str) -> str:
    return f"monitoring:engine-metrics:{node_name}"
