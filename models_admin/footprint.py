"""What a replica takes of a node's memory: estimated from its file's header, corrected by what earlier ones took."""

from datetime import datetime

from django.db import transaction

from models_admin import catalog, launch_config
from models_admin.launch_config import LaunchConfig
from models_admin.memory_estimate import MemoryEstimate, estimate
from models_admin.models import Footprint, Instance, LaunchParameters, ModelFile, PortalConfig, ServedModel
from models_admin.placement import Need

_MIB = 2**20
# Two launches of one kind differ by so much: threads, allocators, what people ask.
_MARGIN = 1.02


def estimate_of(
    served: ServedModel, portal: PortalConfig | None = None, file: ModelFile | None = None
) -> MemoryEstimate | None:
    """What one replica will take by the file's header alone. None where it can't be read or isn't ours.

    `file`: the one of a certain node, where the model's own lies on another.
    """
    file = file or served.file
    return _estimate(file, launch_config.of(served, portal)) if file else None


def needed(
    served: ServedModel,
    portal: PortalConfig | None = None,
    file: ModelFile | None = None,
    *,
    gpus: bool = False,
) -> Need | None:
    """What must be free before a replica is started, on a node with or without GPUs.

    Corrected by what earlier replicas of the same content took, and with what may be kept of old prompts on top.
    """
    file = file or served.file
    config = launch_config.of(served, portal)
    memory = _estimate(file, config) if file else None
    if file is None or memory is None:
        return None
    total = _corrected(file.content_id, config, memory.total) + _kept_prompts(config)
    return Need(total)


def note(instance: Instance, measured_bytes: int, at: datetime) -> None:
    """Remember what a replica was seen to take, so that the next estimate is better. The most counts."""
    file = instance.file or instance.served.file
    config = launch_config.of(instance.served)
    memory = _estimate(file, config) if file else None
    if file is None or memory is None or not file.content_id:
        return
    with transaction.atomic():
        row, created = Footprint.objects.select_for_update().get_or_create(
            content_id=file.content_id,
            launch_key=config.memory_key(),
            defaults={
                "estimated_bytes": memory.total, "measured_bytes": measured_bytes, "measured_at": at,
            },
        )  # fmt: skip
        if not created and measured_bytes > row.measured_bytes:
            row.estimated_bytes, row.measured_bytes, row.measured_at = memory.total, measured_bytes, at
            row.save()


def _corrected(content_id: str, config: LaunchConfig, estimated: int) -> int:
    known = Footprint.objects.filter(content_id=content_id) if content_id else Footprint.objects.none()
    same = known.filter(launch_key=config.memory_key()).first()
    return int(same.measured_bytes * _MARGIN) if same else estimated


def _kept_prompts(config: LaunchConfig) -> int:
    strict = config.isolation == LaunchParameters.Isolation.STRICT
    return 0 if strict else config.prompt_cache_mib * _MIB


def _estimate(file: ModelFile, config: LaunchConfig) -> MemoryEstimate | None:
    info = catalog.info_of(file)
    if info is None:
        return None
    return estimate(
        info,
        context_tokens=config.context_tokens,
        slots=config.slots,
        ubatch_tokens=config.ubatch_tokens,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
    )
