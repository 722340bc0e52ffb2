from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from models_admin.engine import launch_config
from models_admin.memory import footprint
from models_admin.models import Footprint, Instance, ModelFile, Node, PortalConfig, ServedModel
from models_admin.states import InstanceState as S

MIB = 2**20
ALLOWED = 256 * MIB


def header(**keys: object) -> dict[str, Any]:
    values = {
        "general.architecture": "llama", "llama.block_count": 4, "llama.embedding_length": 256,
        "llama.feed_forward_length": 512, "llama.attention.head_count": 4, "llama.vocab_size": 1000,
    } | {f"llama.{key}": value for key, value in keys.items()}  # fmt: skip
    return {
        "values": values, "tensor_bytes": 200 * MIB, "embedding_bytes": 20 * MIB, "tied_output": False, "parts": 1,
    }  # fmt: skip


@pytest.fixture
def served(served: ServedModel) -> ServedModel:
    ModelFile.objects.update(content_id="c" * 64, metadata=header(), parameters=10**8)
    return ServedModel.objects.select_related("file__node").get()


def replica(served: ServedModel, *, ready_s: float = 5) -> Instance:
    assert served.file
    return Instance.objects.create(
        served=served, node=served.file.node, file=served.file, state=S.READY,
        ready_at=timezone.now() - timedelta(seconds=ready_s), launched=launch_config.of(served).snapshot(),
    )  # fmt: skip


def estimated(served: ServedModel) -> int:
    memory = footprint.estimate_of(served)
    assert memory
    return memory.total


def needed(served: ServedModel) -> int:
    need = footprint.needed(served)
    assert need
    assert need.vram_bytes == 0
    return need.ram_bytes


def note(served: ServedModel, measured_bytes: int, **how: Any) -> None:
    footprint.note(replica(served, **how), measured_bytes, timezone.now())


def test_at_first_the_header_counts_and_what_may_be_kept_of_prompts(served: ServedModel) -> None:
    assert needed(served) == estimated(served) + ALLOWED
    served.prompt_cache_mib = 0
    assert needed(served) == estimated(served)
    served.prompt_cache_mib, served.isolation = 64, "strict"
    assert needed(served) == estimated(served)


def test_models_without_a_header_need_nobody_knows_what(served: ServedModel) -> None:
    ModelFile.objects.update(metadata={})
    served = ServedModel.objects.get()
    assert footprint.needed(served) is None
    assert footprint.estimate_of(served) is None
    note(served, 10**9)
    assert not Footprint.objects.exists()


def test_what_a_replica_took_counts_for_the_next_of_its_kind(served: ServedModel) -> None:
    more = estimated(served) + 100 * MIB
    note(served, more)
    assert needed(served) == int(more * 1.02) + ALLOWED


def test_it_tells_something_of_other_launches_too(served: ServedModel) -> None:
    note(served, estimated(served) + 100 * MIB)
    served.slots = 8
    full = launch_config.of(served)
    unseen = 512 * full.context_tokens * 2
    assert needed(served) == estimated(served) + 100 * MIB + unseen + ALLOWED


def test_other_contents_say_nothing(served: ServedModel) -> None:
    note(served, estimated(served) + 100 * MIB)
    ModelFile.objects.update(content_id="d" * 64)
    other = ServedModel.objects.get()
    assert needed(other) == estimated(other) + ALLOWED


def test_the_most_counts(served: ServedModel) -> None:
    base = estimated(served)
    for measured in (base, base + 50 * MIB, base - 10 * MIB):
        note(served, measured)
    assert Footprint.objects.get().measured_bytes == base + 50 * MIB


def test_old_prompts_arent_taken_for_the_model(served: ServedModel) -> None:
    base = estimated(served)
    note(served, base + ALLOWED - MIB, ready_s=3600)
    assert not Footprint.objects.exists()
    # Beyond what it may keep of them it is the model's own.
    note(served, base + ALLOWED + 50 * MIB, ready_s=3600)
    assert Footprint.objects.get().measured_bytes == base + 50 * MIB


def test_a_script_before_the_server_isnt_taken_for_it(served: ServedModel) -> None:
    note(served, 3 * MIB)
    assert not Footprint.objects.exists()


def test_what_was_seen_long_ago_is_replaced_by_what_is_seen_now(served: ServedModel) -> None:
    base = estimated(served)
    note(served, base + 90 * MIB)
    Footprint.objects.update(measured_at=timezone.now() - timedelta(days=60))
    note(served, base + 10 * MIB)
    assert Footprint.objects.get().measured_bytes == base + 10 * MIB


def test_what_it_was_launched_with_counts_not_what_is_set_now(served: ServedModel) -> None:
    instance, before = replica(served), launch_config.of(served).memory_key()
    served.slots = 16
    served.save()
    footprint.note(instance, estimated(served), timezone.now())
    assert Footprint.objects.get().launch_key == before


def test_on_gpus_the_header_alone_counts(served: ServedModel) -> None:
    Node.objects.update(gpus=[{"index": 0, "name": "GPU", "memory_bytes": 2**36, "free_bytes": 2**36}])
    on_gpu = ServedModel.objects.select_related("file__node").get()
    note(on_gpu, estimated(on_gpu) * 3)
    assert not Footprint.objects.exists()
    need = footprint.needed(on_gpu, gpus=True)
    assert need
    assert need.vram_bytes > 180 * MIB
    assert need.ram_bytes < needed(on_gpu) + 300 * MIB
    on_gpu.gpu_layers = 0
    assert footprint.needed(on_gpu, gpus=True) == footprint.needed(on_gpu)


def test_adapters_projectors_and_draft_models_are_added(served: ServedModel) -> None:
    assert served.file
    plain = estimated(served)

    def beside(name: str, kind: str, size: int, **fields: Any) -> ModelFile:
        return ModelFile.objects.create(
            node=served.file.node, path=f"/models/{name}.gguf", kind=kind, size_bytes=size,
            modified_at=timezone.now(), **fields,
        )  # fmt: skip

    beside("lora", "adapter", 7 * MIB)
    served.lora = ["/models/lora.gguf", "/models/unknown.gguf"]
    assert estimated(served) == plain + 7 * MIB
    served.file.projector = beside("mmproj", "projector", 30 * MIB)
    assert estimated(served) == plain + 37 * MIB
    served.vision = False
    assert estimated(served) == plain + 7 * MIB
    beside("draft", "model", 200 * MIB, metadata=header(), parameters=10**8)
    served.draft_model = "/models/draft.gguf"
    memory = footprint.estimate_of(served)
    assert memory
    # The draft is the same model here: all of it once more, but for the process.
    assert memory.total == 2 * plain - memory.process + 7 * MIB


def test_further_flags_count_where_they_decide_about_memory(served: ServedModel) -> None:
    base, kept = estimated(served), needed(served)
    for flags, less in (
        (["--cache-type-k", "q8_0"], True),
        (["--flash-attn", "off"], False),
        (["--temp", "0.5", "--mlock"], None),
    ):
        served.extra_flags = flags
        assert (estimated(served) < base) == (less is True)
        assert (estimated(served) > base) == (less is False)
    served.extra_flags = ["--cache-ram", "100"]
    assert needed(served) == kept - 156 * MIB


def test_checkpoints_of_sliding_windows_are_kept_for_each_slot(served: ServedModel) -> None:
    metadata = header()
    metadata["values"] = {
        key.replace("llama.", "gemma3."): "gemma3" if value == "llama" else value
        for key, value in metadata["values"].items()
    } | {"gemma3.attention.sliding_window": 512}
    ModelFile.objects.update(metadata=metadata)
    gemma = ServedModel.objects.get()
    memory = footprint.estimate_of(gemma)
    assert memory
    assert memory.checkpoint == 4 * 512 * 256 * 4
    assert needed(gemma) == memory.total + ALLOWED + 2 * 4 * memory.checkpoint
    gemma.extra_flags = ["--ctx-checkpoints", "0"]
    assert needed(gemma) == memory.total + ALLOWED


def test_the_portals_defaults_count_where_the_model_says_nothing(served: ServedModel) -> None:
    PortalConfig(cache_type_k="q4_0", cache_type_v="q4_0").save()
    portal = PortalConfig.current()
    given = footprint.needed(served, portal)
    assert given == footprint.needed(served)
    PortalConfig().save()
    assert given
    assert given.ram_bytes < needed(served)
