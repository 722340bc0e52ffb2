"""What a replica takes of a node's memory: estimated from its file's header, corrected by what earlier ones took.

What a process takes is its resident memory: the engine fills its caches with zeros when it starts, and weights that
are mapped from the file are of no use on disk, so both count although the kernel could drop the latter.
"""

from datetime import datetime, timedelta

from models_admin.engine import launch, launch_config
from models_admin.engine.launch_config import LaunchConfig
from models_admin.files import catalog
from models_admin.memory import memory_estimate
from models_admin.memory.correction import Sight, corrected
from models_admin.memory.memory_estimate import MemoryEstimate, estimate, with_additions
from models_admin.memory.placement import Need
from models_admin.models import Footprint, Instance, LaunchParameters, ModelFile, PortalConfig, ServedModel

_MIB = 2**20
# So soon after its start a replica has kept little of old prompts.
_YOUNG = timedelta(seconds=60)
# Another build of the engine may take less.
_OUT_OF_DATE = timedelta(days=30)
_LEAST_SHARE = 0.5


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

    Corrected by what earlier replicas of the same content took, and with what may be kept of old prompts on top. On
    GPUs the header alone counts: nobody measures what a process takes there.
    """
    file = file or served.file
    config = launch_config.of(served, portal)
    memory = _estimate(file, config) if file else None
    if file is None or memory is None:
        return None
    kept = _kept(config, memory)
    if gpus and config.gpu_layers != 0 and (info := catalog.info_of(file)):
        ram, vram = memory_estimate.on_gpu(memory, info, config.gpu_layers)
        return Need(ram + kept, vram)
    return Need(corrected(memory, config.memory_key(), _sights(file)) + kept)


def note(instance: Instance, measured_bytes: int, at: datetime) -> None:
    """Remember what a replica takes while it works, so that the next estimate is better. The most counts.

    An old replica may hold as much of old prompts as it is allowed: only what is beyond that is its own.
    """
    file = instance.file or instance.served.file
    config = launch_config.of_snapshot(instance.launched)
    memory = _estimate(file, config) if file else None
    on_gpu = instance.node is not None and bool(instance.node.gpus) and config.gpu_layers != 0
    if file is None or memory is None or not file.content_id or on_gpu:
        return
    estimated = memory.total - memory.only_when_full
    young = instance.ready_at is not None and at - instance.ready_at <= _YOUNG
    own = measured_bytes if young else measured_bytes - _kept(config, memory)
    # What is far too little isn't the server's: a script may stand before it.
    if own < (estimated * _LEAST_SHARE if young else memory.total):
        return
    seen = {"estimated_bytes": estimated, "measured_bytes": own, "measured_at": at}
    row, created = Footprint.objects.get_or_create(
        content_id=file.content_id, launch_key=config.memory_key(), defaults=seen
    )
    outdated = row.estimated_bytes != estimated or at - row.measured_at > _OUT_OF_DATE
    if not created and (own > row.measured_bytes or (young and outdated)):
        Footprint.objects.filter(pk=row.pk).update(**seen)


def _sights(file: ModelFile) -> list[Sight]:
    if not file.content_id:
        return []
    rows = Footprint.objects.filter(content_id=file.content_id)
    return [Sight(row.launch_key, row.estimated_bytes, row.measured_bytes) for row in rows]


def _kept(config: LaunchConfig, memory: MemoryEstimate) -> int:
    """What it may keep of prompts beside its caches: those that are in no slot, checkpoints of those that are."""
    flags = _flags(config)
    strict = config.isolation == LaunchParameters.Isolation.STRICT
    prompts = _number(flags.get("--cache-ram"), 0 if strict else config.prompt_cache_mib) * _MIB
    checkpoints = _number(flags.get("--ctx-checkpoints"), launch.CONTEXT_CHECKPOINTS)
    return prompts + config.slots * checkpoints * memory.checkpoint


def _estimate(file: ModelFile, config: LaunchConfig) -> MemoryEstimate | None:
    info = catalog.info_of(file)
    if info is None:
        return None
    flags = _flags(config)
    memory = estimate(
        info,
        context_tokens=config.context_tokens,
        slots=config.slots,
        ubatch_tokens=min(config.ubatch_tokens, config.batch_tokens),
        cache_type_k=flags.get("--cache-type-k", config.cache_type_k),
        cache_type_v=flags.get("--cache-type-v", config.cache_type_v),
        flash_attention=flags.get("--flash-attn", config.flash_attention) != "off",
        full_window="--swa-full" in flags,
    )
    files_bytes = file.projector.size_bytes if config.vision and file.projector else 0
    named = [*config.lora, config.draft_model] if config.draft_model else list(config.lora)
    beside = (
        {one.path: one for one in ModelFile.objects.filter(node=file.node_id, path__in=named)}
        if named
        else {}
    )
    files_bytes += sum(beside[path].size_bytes for path in config.lora if path in beside)
    draft = _draft(beside.get(config.draft_model), config)
    return with_additions(memory, files_bytes=files_bytes, draft=draft)


def _draft(file: ModelFile | None, config: LaunchConfig) -> MemoryEstimate | None:
    """A draft model has slots and contexts like the one it drafts for, and its own kinds of cache."""
    info = catalog.info_of(file) if file else None
    if info is None:
        return None
    return estimate(
        info,
        context_tokens=config.context_tokens,
        slots=config.slots,
        ubatch_tokens=min(config.ubatch_tokens, config.batch_tokens),
    )


def _flags(config: LaunchConfig) -> dict[str, str]:
    """The further flags with their values; a switch has an empty one."""
    flags, rest = dict[str, str](), list(config.extra_flags)
    while rest:
        flag = rest.pop(0)
        flags[flag] = rest.pop(0) if flag in launch.OPTIONS and rest else ""
    return flags


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdecimal() else otherwise
