from typing import Any

import pytest
from django.test import Client

from accounts.models import AuditEntry, User
from llamaproj.errors import Conflict
from models_admin import notes, remedies, tasks
from models_admin.engine.diagnosis import Cause
from models_admin.models import Instance, ModelFile, Node, PortalConfig, ServedModel
from models_admin.remedies import Remedy
from models_admin.states import InstanceState as S
from models_admin.states import Shortage

pytestmark = pytest.mark.django_db
GIB = 2**30


@pytest.fixture(autouse=True)
def nobody_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "wake", lambda name: None)


@pytest.fixture
def sized(served: ServedModel, node: Node) -> ServedModel:
    """32 layers of 8 heads of 128: 128 KiB of cache for each token, 4 GiB of weights; 32 GiB of machine."""
    values = {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.embedding_length": 4096,
        "llama.feed_forward_length": 14336,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
    }
    metadata = {
        "values": values, "tensor_bytes": 4 * GIB, "embedding_bytes": 0, "tied_output": False, "parts": 1,
    }  # fmt: skip
    ModelFile.objects.update(metadata=metadata, size_bytes=4 * GIB)
    Node.objects.update(memory_bytes=32 * GIB, memory_free_bytes=10 * GIB)
    ServedModel.objects.update(context_tokens=16384, slots=4, enabled=True, desired_replicas=1)
    return ServedModel.objects.select_related("file__node").get()


def failed(served: ServedModel, cause: str, *lines: str, state: S = S.FAILED) -> Instance:
    node = served.file.node if served.file else None
    instance = Instance.objects.create(
        served=served, node=node, state=state, cause=cause, reason="It failed."
    )
    notes.tell_log(instance.pk, list(lines))
    return instance


def offered(served: ServedModel) -> dict[str, Remedy]:
    return {one.code: one for trouble in remedies.troubles(served) for one in trouble.remedies}


def test_too_little_memory_offers_what_would_fit(sized: ServedModel) -> None:
    failed(
        sized, Cause.OUT_OF_MEMORY, "ggml_aligned_malloc: insufficient memory (attempted to allocate 8 MB)"
    )
    found = offered(sized)
    # 9 GiB may be taken: 4 of weights leave room for 4 slots of 8,192 tokens at 128 KiB, or for 2 of 16,384.
    assert found["context"].changes == {"context_tokens": 8192}
    assert found["slots"].changes == {"slots": 2}
    # Half of 8 GiB and a little, which is too much beside the rest.
    assert "quantised-cache" in found
    assert "9.0 GiB can be had" in found["context"].effect


def test_nothing_is_offered_that_would_not_fit_either(sized: ServedModel) -> None:
    Node.objects.update(memory_free_bytes=4 * GIB)
    failed(sized, Cause.OUT_OF_MEMORY)
    assert offered(ServedModel.objects.select_related("file__node").get()) == {}


def test_where_the_estimate_found_room_the_next_smaller_is_a_try(sized: ServedModel) -> None:
    Node.objects.update(memory_free_bytes=30 * GIB)
    failed(sized, Cause.OUT_OF_MEMORY)
    context = offered(ServedModel.objects.select_related("file__node").get())["context"]
    assert context.changes == {"context_tokens": 8192}
    assert "can be had" not in context.effect


def test_for_one_too_large_for_every_machine_others_may_be_unloaded(sized: ServedModel, node: Node) -> None:
    Node.objects.update(memory_bytes=11 * GIB, memory_free_bytes=3 * GIB)
    other = ServedModel.objects.create(slug="other", name="Other", file=sized.file)
    Instance.objects.create(served=other, node=node, state=S.READY, memory_bytes=7 * GIB)
    Instance.objects.create(served=sized, state=S.PENDING, cause=Shortage.TOO_LARGE, reason="Too large.")
    fresh = ServedModel.objects.select_related("file__node").get(pk=sized.pk)
    (trouble,) = remedies.troubles(fresh)
    assert "too large for every machine" in trouble.diagnosis.summary
    assert offered(fresh)["context"].changes == {"context_tokens": 8192}


def test_no_context_beyond_what_it_was_trained_for_is_offered(sized: ServedModel) -> None:
    ModelFile.objects.update(context_tokens=5000)
    failed(sized, Cause.OUT_OF_MEMORY)
    fresh = ServedModel.objects.select_related("file__node").get()
    assert offered(fresh)["context"].changes == {"context_tokens": 5000}


def test_too_little_gpu_memory_offers_fewer_layers(sized: ServedModel) -> None:
    gpu = {"index": 0, "name": "GPU", "memory_bytes": 8 * GIB, "free_bytes": 6 * GIB}
    Node.objects.update(gpus=[gpu])
    failed(sized, Cause.OUT_OF_GPU_MEMORY)
    found = offered(ServedModel.objects.select_related("file__node").get())
    assert 8 <= found["gpu-layers"].changes["gpu_layers"] <= 16
    assert found["no-gpu"].changes == {"gpu_layers": 0}
    ServedModel.objects.update(gpu_layers=2, extra_flags=["--mlock"])
    found = offered(ServedModel.objects.select_related("file__node").get())
    assert found["gpu-layers"].changes == {"gpu_layers": 1}


@pytest.mark.parametrize(
    ("cause", "line", "fields", "code", "changes"),
    [
        (Cause.CACHE_TYPE, "quantized V cache requires flash_attn to be enabled",
         {"cache_type_v": "q8_0", "flash_attention": "off"}, "flash-attention", {"flash_attention": "on"}),
        (Cause.CACHE_TYPE, "quantized V cache requires flash_attn to be enabled",
         {"extra_flags": ["--cache-type-v", "q8_0", "--mlock"]}, "plain-cache",
         {"cache_type_k": "f16", "cache_type_v": "f16", "extra_flags": ["--mlock"]}),
        (Cause.TEMPLATE, "chat template parsing error", {"chat_template": "{{"}, "own-template", {"chat_template": ""}),
        (Cause.TEMPLATE, "chat template parsing error", {}, "chatml", {"chat_template": "chatml"}),
        (Cause.LORA, "failed to apply lora adapter", {"lora": ["/a.gguf"]}, "without-lora", {"lora": []}),
        (Cause.DRAFT_MODEL, "failed to load draft model", {"draft_model": "/d"}, "without-draft-model",
         {"draft_model": ""}),
        (Cause.PROJECTOR, "failed to load multimodal model", {}, "without-projector", {"vision": False}),
        (Cause.WRONG_FLAG, "error: invalid argument: --seed", {"extra_flags": ["--seed", "1", "--mlock"]},
         "without-flag", {"extra_flags": ["--mlock"]}),
        (Cause.WRONG_FLAG, "error: argument -t/--threads: invalid value", {"threads": 3}, "without-flag",
         {"threads": None}),
        (Cause.PORT_IN_USE, "couldn't bind HTTP server socket", {}, "again", {}),
        (Cause.PORT_IN_USE, "couldn't bind HTTP server socket", {"host": "10.9.9.9"}, "own-address", {"host": ""}),
        (Cause.GPU_GONE, "CUDA error: no CUDA-capable device is detected", {}, "no-gpu", {"gpu_layers": 0}),
    ],
)  # fmt: skip
def test_what_helps_against_what(
    sized: ServedModel, cause: Cause, line: str, fields: dict[str, Any], code: str, changes: dict[str, Any]
) -> None:
    ServedModel.objects.update(**fields)
    failed(sized, cause, line)
    assert offered(ServedModel.objects.select_related("file__node").get())[code].changes == changes


@pytest.mark.parametrize(
    "cause", [Cause.BAD_FILE, Cause.UNKNOWN_ARCHITECTURE, Cause.ILLEGAL_INSTRUCTION, Cause.MISSING_LIBRARY]
)
def test_where_only_a_person_can_help_there_are_words(sized: ServedModel, cause: Cause) -> None:
    failed(sized, cause)
    (trouble,) = remedies.troubles(sized)
    assert trouble.remedies == []
    assert trouble.diagnosis.summary


def test_what_only_the_portals_configuration_says_cannot_be_left_out(sized: ServedModel) -> None:
    PortalConfig(lora=["/a.gguf"]).save()
    failed(sized, Cause.LORA, "failed to apply lora adapter")
    assert offered(sized) == {}


def test_a_running_replicas_old_cause_is_no_trouble(sized: ServedModel) -> None:
    failed(sized, Cause.BAD_FILE, state=S.READY)
    assert not remedies.is_troubled(sized)
    assert remedies.troubles(sized) == []


def test_replicas_with_one_cause_are_one_trouble(sized: ServedModel) -> None:
    for _ in range(2):
        failed(sized, Cause.BAD_FILE)
    failed(sized, Cause.PORT_IN_USE)
    assert [len(trouble.instances) for trouble in remedies.troubles(sized)] == [1, 2]


def test_applying_changes_starts_again_and_is_audited(sized: ServedModel) -> None:
    boss = User.objects.create_superuser("boss")
    waiting = failed(sized, Cause.OUT_OF_MEMORY, state=S.BACKING_OFF)
    broken = failed(sized, Cause.OUT_OF_MEMORY)
    remedies.apply(sized, "context", by=boss)
    sized.refresh_from_db()
    assert sized.context_tokens == 8192
    for instance in (waiting, broken):
        instance.refresh_from_db()
        assert (instance.state, instance.crashes) == (S.PENDING, 0)
    first = AuditEntry.objects.order_by("at")[0]
    assert (first.verb, first.detail) == ("model.remedy", {"remedy": "context"})


def test_what_is_not_offered_any_more_is_refused(sized: ServedModel) -> None:
    failed(sized, Cause.BAD_FILE)
    with pytest.raises(Conflict):
        remedies.apply(sized, "context", by=None)
    assert not AuditEntry.objects.exists()


def test_the_admin_site_does_what_is_suggested_first(sized: ServedModel, client: Client) -> None:
    boss = User.objects.create_superuser("boss")
    client.force_login(boss)
    where = "/admin/models_admin/servedmodel/"
    chosen = {"action": "help_models", "_selected_action": [sized.pk]}
    refused = client.post(where, chosen, follow=True).content.decode()
    assert "Nothing is known that would help" in refused

    failed(sized, Cause.OUT_OF_MEMORY, "ggml_aligned_malloc: insufficient memory")
    first = remedies.troubles(sized)[0].remedies[0]
    assert "changed as its page suggests" in client.post(where, chosen, follow=True).content.decode()

    sized.refresh_from_db()
    assert {name: getattr(sized, name) for name in first.changes} == first.changes
    assert AuditEntry.objects.get(verb="model.remedy").by == boss
