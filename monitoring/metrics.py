"""`/metrics`: the portal's state in Prometheus' text format, the same whichever web process answers.

Nothing here asks a llama-server: what these said is as old as the newest sample, two seconds. The portal's own metrics
begin with `llamaproj_`; llama.cpp's keep their names and gain the labels model, instance and node.
"""

from collections import defaultdict
from collections.abc import Iterator

from django.db.models import Count, Q, Value
from django.db.models.functions import Coalesce
from django.utils import timezone
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from chat.models import Generation
from gateway.models import BUCKETS_MS, UsageRecord
from models_admin.models import Instance
from monitoring.models import Sample
from monitoring.sampling import remembered_metrics
from monitoring.usage_totals import Totals, usage_totals

_UNANSWERED = {UsageRecord.Finish.ERROR.value, UsageRecord.Finish.CANCELLED.value}
_INSTANCE_LABELS = ("model", "instance", "node")


def render() -> bytes:
    """All metrics now."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(_Portal())
    return generate_latest(collectors)


class _Portal(Collector):
    def collect(self) -> Iterator[Metric]:
        samples = Sample.objects.newest()
        yield from _requests()
        yield from _generations()
        yield from _instances()
        yield from _nodes(samples)
        yield from _servers(samples)
        yield from _llama_cpp(samples)


def _requests() -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "llamaproj_requests", "Requests through the gateway.", labels=("model", "door", "finish")
    )
    tokens = CounterMetricFamily(
        "llamaproj_tokens", "Tokens read and written for requests.", labels=("model", "door", "kind")
    )
    duration = HistogramMetricFamily(
        "llamaproj_request_duration_seconds", "Duration of answered requests.", labels=("model", "door")
    )
    everything: defaultdict[tuple[str, str], Totals] = defaultdict(Totals)
    answered: defaultdict[tuple[str, str], Totals] = defaultdict(Totals)
    for (model, door, finish), totals in usage_totals().items():
        requests.add_metric((model, door, finish), totals.requests)
        everything[model, door] += totals
        if finish not in _UNANSWERED:
            answered[model, door] += totals
    for labels, totals in everything.items():
        tokens.add_metric((*labels, "prompt"), totals.prompt_tokens)
        tokens.add_metric((*labels, "completion"), totals.completion_tokens)
    for labels, totals in answered.items():
        bounds = [str(bound / 1000) for bound in BUCKETS_MS]
        buckets = [*zip(bounds, totals.within, strict=True), ("+Inf", totals.requests)]
        duration.add_metric(labels, buckets=buckets, sum_value=totals.seconds)
    yield from (requests, tokens, duration)


def _generations() -> Iterator[Metric]:
    now = timezone.now()
    counts = Generation.objects.filter(ended_at__isnull=True).aggregate(
        running=Count("pk", filter=Q(lease_until__gt=now)),
        waiting=Count("pk", filter=Q(lease_until__isnull=True) | Q(lease_until__lte=now)),
    )
    generations = GaugeMetricFamily(
        "llamaproj_generations", "Answers being written, and waiting for a generator.", labels=("state",)
    )
    for state, count in counts.items():
        generations.add_metric((state,), count)
    yield generations


def _instances() -> Iterator[Metric]:
    instances = GaugeMetricFamily(
        "llamaproj_instances", "llama-servers by their state.", labels=("model", "node", "state")
    )
    # Without a node: what runs on a server elsewhere, and what has found no place yet.
    node = Coalesce("node__name", Value(""))
    rows = Instance.objects.current().values_list("served__slug", node, "state")
    for *labels, count in rows.annotate(count=Count("pk")).order_by("served__slug", node, "state"):
        instances.add_metric(labels, count)
    yield instances


def _nodes(samples: list[Sample]) -> Iterator[Metric]:
    def gauge(name: str, about: str, *more_labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"llamaproj_node_{name}", about, labels=("node", *more_labels))

    cpu = gauge("cpu_ratio", "Busy share of the processors, 0 to 1.")
    memory_used = gauge("memory_used_bytes", "Memory in use.")
    memory_total = gauge("memory_total_bytes", "Memory of the machine.")
    load = gauge("load", "Load average.", "minutes")
    network = gauge("network_bytes_per_second", "Network traffic.", "direction")
    disk = gauge("disk_bytes_per_second", "Disk traffic.", "direction")
    disk_used = gauge("disk_used_bytes", "Disk space in use.", "volume")
    disk_total = gauge("disk_total_bytes", "Disk space.", "volume")
    gpu = gauge("gpu_ratio", "Busy share of the GPU, 0 to 1.", "gpu", "name")
    gpu_used = gauge("gpu_memory_used_bytes", "GPU memory in use.", "gpu", "name")
    gpu_total = gauge("gpu_memory_total_bytes", "Memory of the GPU.", "gpu", "name")
    gpu_temperature = gauge("gpu_temperature_celsius", "Temperature of the GPU.", "gpu", "name")
    gpu_power = gauge("gpu_power_watts", "Power the GPU draws.", "gpu", "name")
    for sample in samples:
        node, data = sample.node.name, sample.data
        _add(cpu, data["cpu"]["percent"], node, scale=0.01)
        _add(memory_used, data["memory"]["used_bytes"], node)
        _add(memory_total, data["memory"]["total_bytes"], node)
        for minutes, value in zip(("1", "5", "15"), data["load"], strict=True):
            _add(load, value, node, minutes)
        _add(network, data["network"]["in_bytes_s"], node, "in")
        _add(network, data["network"]["out_bytes_s"], node, "out")
        _add(disk, data["disk"]["read_bytes_s"], node, "read")
        _add(disk, data["disk"]["write_bytes_s"], node, "write")
        for volume in data["disk"]["volumes"]:
            _add(disk_used, volume["used_bytes"], node, volume["name"])
            _add(disk_total, volume["total_bytes"], node, volume["name"])
        for number, each in enumerate(data["gpus"]):
            labels = (node, str(number), each["name"])
            _add(gpu, each["percent"], *labels, scale=0.01)
            _add(gpu_used, each["memory_used_bytes"], *labels)
            _add(gpu_total, each["memory_total_bytes"], *labels)
            _add(gpu_temperature, each["temperature_c"], *labels)
            _add(gpu_power, each["power_w"], *labels)
    yield from (cpu, memory_used, memory_total, load, network, disk, disk_used, disk_total)
    yield from (gpu, gpu_used, gpu_total, gpu_temperature, gpu_power)


def _servers(samples: list[Sample]) -> Iterator[Metric]:
    families = {
        key: GaugeMetricFamily(f"llamaproj_instance_{name}", about, labels=_INSTANCE_LABELS)
        for key, name, about in (
            ("cpu_percent", "cpu_cores", "Processor time of the llama-server, in cores."),
            ("memory_bytes", "resident_memory_bytes", "Resident memory of the llama-server."),
            ("gpu_memory_bytes", "gpu_memory_bytes", "GPU memory of the llama-server."),
            ("threads", "threads", "Threads of the llama-server."),
            ("slots", "slots", "Slots of the llama-server."),
            ("slots_busy", "slots_busy", "Slots at work."),
            ("context_used_tokens", "context_used_tokens", "Tokens in the context of busy slots."),
            ("context_tokens", "context_tokens", "Context size over all slots."),
        )
    }
    for sample in samples:
        for row in sample.data["instances"]:
            for key, family in families.items():
                labels = (row["slug"], row["id"], sample.node.name)
                _add(family, row[key], *labels, scale=0.01 if key == "cpu_percent" else 1)
    yield from families.values()


def _llama_cpp(samples: list[Sample]) -> Iterator[Metric]:
    families: dict[str, Metric] = {}
    for sample in samples:
        models = {row["id"]: row["slug"] for row in sample.data["instances"]}
        for instance, metrics in remembered_metrics(sample.node.name).items():
            labels = {"model": models.get(instance, ""), "instance": instance, "node": sample.node.name}
            for name, value in metrics.items():
                kind = "counter" if name.endswith("_total") else "gauge"
                family = families.setdefault(
                    name, Metric(f"llamacpp:{name.removesuffix('_total')}", "See llama.cpp's server.", kind)
                )
                family.add_sample(f"llamacpp:{name}", labels, value)
    yield from families.values()


def _add(family: GaugeMetricFamily, value: float | None, *labels: str, scale: float = 1) -> None:
    if value is not None:
        family.add_metric(labels, value * scale)
