import pytest

from llamaproj.errors import InvalidInput
from models_admin import replacement
from models_admin.engine import launch_config, launch_rules
from models_admin.memory import footprint
from models_admin.memory.memory_estimate import MemoryEstimate
from models_admin.models import Instance, Node, PortalConfig, ServedModel
from models_admin.states import InstanceState as S

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("context_tokens", {"context_tokens": 255}),
        ("context_tokens", {"context_tokens": "many"}),
        ("slots", {"slots": 0}),
        ("slots", {"slots": 65}),
        ("ubatch_tokens", {"batch_tokens": 512, "ubatch_tokens": 1024}),
        ("ubatch_tokens", {"ubatch_tokens": 4096}),
        ("last_port", {"first_port": 20_010, "last_port": 20_009}),
        ("first_port", {"first_port": 30_001}),
        ("first_port", {"first_port": 80}),
        ("pooling", {"pooling": "mean"}),
        ("pooling", {"pooling": "median", "embeddings": True}),
        ("reranking", {"pooling": "mean", "reranking": True}),
        ("cache_type_v", {"cache_type_v": "q8_0", "flash_attention": "off"}),
        ("cache_type_k", {"cache_type_k": "q3"}),
        ("tensor_split", {"tensor_split": "3,1", "split_mode": "none"}),
        ("tensor_split", {"tensor_split": "3;1"}),
        ("binary", {"binary": "llama-server"}),
        ("binary", {"binary": "/bin/llama\nserver"}),
        ("draft_model", {"draft_model": "draft.gguf"}),
        ("lora", {"lora": ["adapter.gguf"]}),
        ("lora", {"lora": ["/a\0b.gguf"]}),
        ("lora", {"lora": "/a.gguf"}),
        ("node_labels", {"node_labels": [""]}),
        ("node_labels", {"node_labels": [1]}),
        ("host", {"host": "0.0.0.0; reboot"}),
        ("host", {"host": "0.0.0.0"}),
        ("host", {"host": "0"}),
        ("host", {"host": "::"}),
        ("host", {"host": "8.8.8.8"}),
        ("chat_template", {"chat_template": "a\0"}),
        ("extra_flags", {"extra_flags": ["--tools", "all"]}),
        ("max_replicas", {"min_replicas": 2, "max_replicas": 1}),
        ("min_replicas", {"min_replicas": 17, "max_replicas": 17}),
        ("health_timeout_s", {"health_timeout_s": 0}),
        ("name", {"name": ""}),
    ],
)
def test_what_can_not_be_is_refused_by_the_name_of_the_parameter(
    served: ServedModel, param: str, fields: dict[str, object]
) -> None:
    for name, value in fields.items():
        setattr(served, name, value)
    with pytest.raises(InvalidInput) as refusal:
        launch_rules.check(served)
    assert refusal.value.param == param
    assert refusal.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"batch_tokens": 128},
        {"pooling": "mean", "embeddings": True},
        {"pooling": "rank", "reranking": True},
        {"cache_type_v": "q8_0", "flash_attention": "on"},
        {"cache_type_v": "q8_0"},
        {"cache_type_k": "q8_0", "flash_attention": "off"},
        {"tensor_split": "3,1", "split_mode": "layer"},
        {"lora": ["/a.gguf", "/b.gguf"], "draft_model": "/d.gguf", "binary": "/opt/llama-server"},
        {"chat_template": "{% for m in messages %}\n{{ m.content }}{% endfor %}"},
        {"min_replicas": 0, "max_replicas": 3},
        {"gpu_layers": 0},
        {"first_port": 29_999},
        {"host": "127.0.0.1"},
        {"host": "10.0.0.7"},
        {"host": "fd00::7"},
        {"host": "gpu2"},
    ],
)
def test_what_goes_together_is_taken(served: ServedModel, fields: dict[str, object]) -> None:
    for name, value in fields.items():
        setattr(served, name, value)
    launch_rules.check(served)


def test_a_name_that_a_page_has_is_refused() -> None:
    assert {"add", "scan", "config"} <= launch_rules.reserved_slugs()
    assert not any("<" in slug for slug in launch_rules.reserved_slugs() - {"<slug:slug>"})
    with pytest.raises(InvalidInput, match="portal's own"):
        launch_rules.check(ServedModel(slug="config", name="Config"))


def test_what_the_portal_says_wrongly_is_not_the_models_fault(served: ServedModel) -> None:
    portal = PortalConfig(pooling="mean", ubatch_tokens=4096)
    launch_rules.check(served, portal)
    with pytest.raises(InvalidInput) as refusal:
        launch_rules.check(portal)
    assert refusal.value.param == "ubatch_tokens"


def test_the_portals_configuration_must_suit_every_model(served: ServedModel) -> None:
    portal = PortalConfig(cache_type_v="q8_0")
    launch_rules.check(portal)
    ServedModel.objects.update(flash_attention="off")
    with pytest.raises(InvalidInput, match="Fake could not be started") as refusal:
        launch_rules.check(portal)
    assert refusal.value.param == "cache_type_v"
    ServedModel.objects.update(cache_type_v="f16")
    launch_rules.check(portal)


def test_a_models_word_goes_over_the_portals_and_that_over_the_built_in(served: ServedModel) -> None:
    portal = PortalConfig(slots=8, threads=3)
    effective = launch_config.of(served, portal)
    assert (effective.slots, effective.threads, effective.batch_tokens) == (2, 3, 2048)
    served.slots = None
    assert launch_config.of(served, portal).slots == 8


def test_what_is_perhaps_not_meant_is_doubted(
    served: ServedModel, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not launch_rules.doubts(served)
    served.file.context_tokens = 512
    assert "trained for 512 tokens" in launch_rules.doubts(served)[0]
    monkeypatch.setattr(footprint, "estimate_of", lambda *_: MemoryEstimate(2**34, 0, 0))
    assert "more than" in launch_rules.doubts(served)[1]


def test_running_replicas_with_other_settings_are_counted(served: ServedModel, node: Node) -> None:
    now = launch_config.of(served).snapshot()
    for state, launched in (
        (S.READY, now),
        (S.STARTING, now),
        (S.DRAINING, now),
        (S.STOPPED, now),
        (S.PENDING, {}),
    ):
        Instance.objects.create(served=served, node=node, state=state, launched=launched)
    assert replacement.count(served) == 0
    served.drain_timeout_s = 5
    assert replacement.count(served) == 0
    served.slots = 3
    assert replacement.count(served) == 2
    portal = PortalConfig(threads=7)
    found = replacement.by_portal(portal)
    assert [(one.served.slug, one.replicas) for one in found] == [("fake-model", 2)]
    assert "2 running replicas are replaced one after the other: Fake (2)." in replacement.in_words(found)
    assert replacement.in_words([]) == ""
    other = replacement.by_portal(PortalConfig(threads=8))
    assert replacement.digest(found, portal) != replacement.digest(other, PortalConfig(threads=8))
