"""What may help a model whose replicas don't come up: changes of its launch parameters, each one click.

    for trouble in remedies.troubles(served):
        trouble.diagnosis.summary, [remedy.label for remedy in trouble.remedies]
    remedies.apply(served, "context", by=person)

Where only a person can help (a damaged file, a build for another processor) the words of the diagnosis say how.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction
from django.db.models import Sum

from accounts import audit
from accounts.models import User
from llamaproj.errors import Conflict
from models_admin import actions, notes
from models_admin.engine import diagnosis, launch, launch_config
from models_admin.engine.diagnosis import Cause, Diagnosis
from models_admin.engine.launch_config import LaunchConfig
from models_admin.files import catalog
from models_admin.memory import footprint
from models_admin.models import Instance, Node, PortalConfig, ServedModel
from models_admin.states import InstanceState as S
from models_admin.states import Shortage
from models_admin.templatetags.amounts import as_bytes

# In these states a replica's last crash is what matters about it.
_TROUBLED = (S.FAILED, S.BACKING_OFF, S.CRASHED, S.PENDING)
_MOST_HALVINGS = 12
_LEAST_CONTEXT = 512
# What of a GPU's free memory is left to its driver and to what estimates miss.
_GPU_SHARE = 0.9
# Flags that say what a parameter says; one among the further flags would win over it.
_FLAGS = {
    "cache_type_k": ("--cache-type-k",),
    "cache_type_v": ("--cache-type-v",),
    "chat_template": ("--chat-template",),
    "draft_model": ("--model-draft",),
    "flash_attention": ("--flash-attn",),
    "gpu_layers": ("--gpu-layers", "--n-gpu-layers"),
    "lora": ("--lora",),
    "main_gpu": ("--main-gpu",),
    "pooling": ("--pooling",),
    "reranking": ("--reranking", "--rerank"),
    "split_mode": ("--split-mode",),
    "tensor_split": ("--tensor-split",),
    "threads": ("--threads",),
    "threads_batch": ("--threads-batch",),
}


@dataclass(frozen=True)
class Remedy:
    """One way out. `label` is what a button says, `effect` what it means; `changes` are launch parameters."""

    code: str
    label: str
    effect: str
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trouble:
    """What is wrong with some of a model's replicas, and what may help."""

    diagnosis: Diagnosis
    instances: list[Instance]
    remedies: list[Remedy]

    @property
    def places(self) -> str:
        """Where they were to run."""
        return ", ".join(sorted({one.place for one in self.instances if one.node}))


def troubles(served: ServedModel, portal: PortalConfig | None = None) -> list[Trouble]:
    """Each cause among the model's replicas that don't run, once."""
    found: dict[str, list[Instance]] = {}
    for instance in _troubled(served):
        found.setdefault(instance.cause, []).append(instance)
    portal = portal or PortalConfig.current()
    return [
        Trouble(diagnosed, instances, list(_remedies(served, portal, diagnosed, instances[0])))
        for instances in found.values()
        if (diagnosed := _diagnosis(instances[0]))
    ]


def is_troubled(served: ServedModel) -> bool:
    """True where `troubles` would find something to say."""
    return any(_diagnosis(instance) for instance in _troubled(served))


@transaction.atomic
def apply(served: ServedModel, code: str, *, by: User | None) -> Remedy:
    """Change what the remedy changes and start the model again. Raises `Conflict` where it isn't offered any more."""
    offered = {remedy.code: remedy for trouble in troubles(served) for remedy in trouble.remedies}
    if code not in offered:
        raise Conflict("This isn't offered any more; the model's state has changed meanwhile.")
    remedy = offered[code]
    audit.record(by, "model.remedy", served, remedy=code)
    actions.change(served, by=by, **remedy.changes)
    for instance in served.instances.filter(state=S.BACKING_OFF):
        instance.move_to(
            S.PENDING, "Trying it another way.", crashes=0, faults=0, retry_at=None, node=None, file=None
        )
    actions.start(served, by=by)
    return remedy


def apply_first(served: ServedModel, *, by: User | None) -> Remedy:
    """Apply what is suggested first. Raises `Conflict` where nothing is."""
    for trouble in troubles(served):
        for remedy in trouble.remedies:
            return apply(served, remedy.code, by=by)
    raise Conflict(f"Nothing is known that would help {served.name}; its page says how it is.")


def _troubled(served: ServedModel) -> list[Instance]:
    rows = served.instances.filter(state__in=_TROUBLED).exclude(cause="")
    return list(rows.select_related("node", "file", "served").order_by("-state_since"))


def _diagnosis(instance: Instance) -> Diagnosis | None:
    if instance.cause == Shortage.TOO_LARGE:
        # Nothing has crashed: the scheduler couldn't let it start, and its reason holds the figures.
        return Diagnosis(
            Cause.OUT_OF_MEMORY, "As it is set up it is too large for every machine it may run on."
        )
    return diagnosis.known(instance.cause, notes.log_of(instance.pk))


# What helps against what -------------------------------------------------------------------------------------------

Helper = Callable[["_Case"], Iterator[Remedy]]


@dataclass(frozen=True)
class _Case:
    """A model in trouble."""

    served: ServedModel
    portal: PortalConfig
    config: LaunchConfig
    diagnosis: Diagnosis
    node: Node | None
    instance: Instance

    def with_changes(self, **values: Any) -> ServedModel:
        """The model as it would be."""
        changed = copy.copy(self.served)
        for name, value in self.changes(**values).items():
            setattr(changed, name, value)
        return changed

    def changes(self, **values: Any) -> dict[str, Any]:
        """These values, and without further flags that say otherwise."""
        flags = list(self.served.extra_flags)
        for name in values:
            for flag in _FLAGS.get(name, ()):
                flags = without(flags, flag)
        return values if flags == self.served.extra_flags else {**values, "extra_flags": flags}

    def unsaid(self, name: str) -> dict[str, Any] | None:
        """The change by which the model says nothing of a parameter; None where the portal would say it still."""
        value = getattr(ServedModel(), name)
        said = getattr(self.served, name) not in (None, "", [])
        by_portal = getattr(self.portal, name) not in (None, "", [])
        by_flag = any(flag in self.served.extra_flags for flag in _FLAGS.get(name, ()))
        return self.changes(**{name: value}) if (said or by_flag) and not by_portal else None

    def needed_bytes(self, **values: Any) -> int | None:
        """What a replica would need with these values, by the estimate."""
        need = footprint.needed(self.with_changes(**values), self.portal, self.instance.file)
        return need.ram_bytes + need.vram_bytes if need else None

    def free_bytes(self) -> int | None:
        """What the node has left for a replica; None where it hasn't said.

        For what is too large for every machine, others may be unloaded first.
        """
        if self.node is None or self.node.memory_free_bytes is None:
            return None
        free = self.node.memory_free_bytes
        if self.instance.cause == Shortage.TOO_LARGE:
            others = self.node.instances.current().aggregate(held=Sum("memory_bytes"))
            free += others["held"] or 0
        reserve = self.portal.memory_reserve_mib * 2**20
        return max(0, min(self.node.room_bytes(reserve), free - reserve))


def without(flags: list[str], unwanted: str) -> list[str]:
    """The further flags without one of them and its value."""
    kept: list[str] = []
    rest = iter(flags)
    for flag in rest:
        value = [next(rest, "")] if flag in launch.OPTIONS else []
        if flag != unwanted:
            kept += [flag, *value]
    return kept


def _remedies(
    served: ServedModel, portal: PortalConfig, diagnosed: Diagnosis, instance: Instance
) -> Iterator[Remedy]:
    helper = _HELPERS.get(diagnosed.cause)
    if helper is None or served.file is None:
        return
    node = instance.node or served.file.node
    yield from helper(_Case(served, portal, launch_config.of(served, portal), diagnosed, node, instance))


def _less_memory(case: _Case) -> Iterator[Remedy]:
    """Less context, fewer slots, a quantised cache: each where it would fit by the estimate."""
    config, free = case.config, case.free_bytes()
    as_it_is = case.needed_bytes()
    # An estimate that found room where there was none says nothing about what would fit: then each is a try.
    telling = as_it_is is not None and free is not None and as_it_is > free

    def offer(code: str, label: str, effect: str, values: dict[str, Any]) -> Remedy | None:
        needed = case.needed_bytes(**values)
        if needed is None or free is None or not telling:
            return Remedy(code, label, effect, case.changes(**values))
        if needed > free:
            return None
        effect = f"{effect} It needs about {as_bytes(needed)}; {as_bytes(free)} can be had."
        return Remedy(code, label, effect, case.changes(**values))

    for context in _contexts(case):
        effect = f"Each slot gets {context:,} tokens instead of {config.context_tokens:,}."
        if remedy := offer("context", f"Use a context of {context:,}", effect, {"context_tokens": context}):
            yield remedy
            break
    for slots in _halves(config.slots, 1):
        effect = f"{slots} {'answers' if slots > 1 else 'answer'} at a time instead of {config.slots}."
        label = f"Use {slots} {'slots' if slots > 1 else 'slot'}"
        if remedy := offer("slots", label, effect, {"slots": slots}):
            yield remedy
            break
    if config.cache_type_k in {"f16", "bf16", "f32"} and config.cache_type_v in {"f16", "bf16", "f32"}:
        small = {"cache_type_k": "q8_0", "cache_type_v": "q8_0", "flash_attention": "on"}
        effect = "Its elements take about half the memory, at hardly any loss; needs flash attention."
        if remedy := offer("quantised-cache", "Quantise the KV cache", effect, small):
            yield remedy


def _contexts(case: _Case) -> Iterator[int]:
    """Smaller ones, the largest first; the one the model was trained for before any beyond it."""
    present = case.config.context_tokens
    trained = case.served.file.context_tokens if case.served.file else None
    if trained and trained < present:
        yield trained
        present = trained
    yield from _halves(present, _LEAST_CONTEXT)


def _less_on_gpu(case: _Case) -> Iterator[Remedy]:
    """Fewer layers on the GPU, then what takes less memory anywhere."""
    info = catalog.info_of(case.served.file) if case.served.file else None
    # Beside its blocks a model has an output layer.
    layers = (info.number("block_count") or 0) + 1 if info else 0
    present = min(case.config.gpu_layers if case.config.gpu_layers is not None else layers, layers)
    if present > 1:
        fewer = min(present - 1, max(1, int(present * _share_that_fits(case))))
        yield Remedy(
            "gpu-layers",
            f"Put {fewer} of {layers} layers on the GPU",
            f"Instead of {present}; the others are computed by the processor, more slowly.",
            case.changes(gpu_layers=fewer),
        )
    if context := next(_contexts(case), None):
        yield Remedy(
            "context",
            f"Use a context of {context:,}",
            f"Each slot gets {context:,} tokens instead of {case.config.context_tokens:,}.",
            case.changes(context_tokens=context),
        )
    yield from _no_gpu(case)


def _no_gpu(case: _Case) -> Iterator[Remedy]:
    if case.config.gpu_layers != 0:
        yield Remedy(
            "no-gpu", "Run it without the GPU", "It answers more slowly.", case.changes(gpu_layers=0)
        )


def _share_that_fits(case: _Case) -> float:
    """The share of what was wanted on the GPU that would fit; half where nobody knows."""
    free = sum(int(gpu["free_bytes"]) for gpu in case.node.gpus) if case.node else 0
    needed = case.needed_bytes()
    return min(1.0, free / needed) * _GPU_SHARE if free and needed else 0.5


def _other_cache(case: _Case) -> Iterator[Remedy]:
    if case.config.flash_attention != "on" and not case.diagnosis.subject:
        yield Remedy(
            "flash-attention",
            "Switch flash attention on",
            "The KV cache stays as it is.",
            case.changes(flash_attention="on"),
        )
    yield Remedy(
        "plain-cache",
        "Use a KV cache of f16",
        "It takes more memory, and works with every model.",
        case.changes(cache_type_k="f16", cache_type_v="f16"),
    )


def _other_template(case: _Case) -> Iterator[Remedy]:
    if changes := case.unsaid("chat_template"):
        yield Remedy("own-template", "Use the file's own template", "Yours is dropped.", changes)
    else:
        yield Remedy(
            "chatml",
            "Use the template ChatML",
            "Most models understand it; others answer strangely with it.",
            case.changes(chat_template="chatml"),
        )


def _without_flag(case: _Case) -> Iterator[Remedy]:
    flag = case.diagnosis.subject
    name = next((name for name, flags in _FLAGS.items() if flag in flags), None)
    changes = case.unsaid(name) if name else None
    if changes is None and flag in case.served.extra_flags:
        changes = {"extra_flags": without(case.served.extra_flags, flag)}
    if changes is not None:
        yield Remedy("without-flag", f"Leave out {flag}", "The engine's own default holds then.", changes)


def _left_out(name: str, what: str, effect: str) -> Helper:
    def helper(case: _Case) -> Iterator[Remedy]:
        if (changes := case.unsaid(name)) is not None:
            yield Remedy(f"without-{name.replace('_', '-')}", f"Serve it without {what}", effect, changes)

    return helper


def _without_projector(case: _Case) -> Iterator[Remedy]:
    if case.config.vision:
        yield Remedy(
            "without-projector", "Serve it without images", "Text works as before.", {"vision": False}
        )


def _again(case: _Case) -> Iterator[Remedy]:
    yield Remedy("again", "Start again", "It gets another port.")
    if (changes := case.unsaid("host")) is not None:
        address = case.node.address if case.node else "the node's own address"
        yield Remedy("own-address", f"Listen at {address}", f"Instead of {case.config.host}.", changes)


_HELPERS: dict[Cause, Helper] = {
    Cause.OUT_OF_MEMORY: _less_memory,
    Cause.OUT_OF_GPU_MEMORY: _less_on_gpu,
    Cause.GPU_GONE: _no_gpu,
    Cause.CACHE_TYPE: _other_cache,
    Cause.TEMPLATE: _other_template,
    Cause.LORA: _left_out("lora", "its LoRA adapters", "It answers as the model alone does."),
    Cause.DRAFT_MODEL: _left_out(
        "draft_model", "the draft model", "It answers the same, perhaps more slowly."
    ),
    Cause.PROJECTOR: _without_projector,
    Cause.WRONG_FLAG: _without_flag,
    Cause.PORT_IN_USE: _again,
}


def _halves(value: int, least: int) -> Iterator[int]:
    for _ in range(_MOST_HALVINGS):
        value //= 2
        if value < least:
            return
        yield value
