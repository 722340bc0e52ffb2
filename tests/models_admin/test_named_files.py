from pathlib import Path

import pytest

from llamaproj import env
from llamaproj.errors import InvalidInput
from models_admin.engine import engine, launch_rules, named_files
from models_admin.errors import EngineMissing
from models_admin.models import Node, PortalConfig, ServedModel
from tests.fake_engine import as_binary


@pytest.fixture
def folders(node: Node) -> None:
    Node.objects.update(model_folders=["/srv/models"], programs=["/opt/llama-server"])


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("lora", ["/etc/shadow"]),
        ("lora", ["/srv/models/a.gguf", "/srv/models/../secret.gguf"]),
        ("lora", ["/srv/models"]),
        ("draft_model", "/srv/models-of-others/draft.gguf"),
        ("binary", "/bin/sh"),
        ("binary", "/opt/../bin/sh"),
    ],
)
def test_a_path_that_no_machine_allows_is_refused_where_it_is_typed(
    served: ServedModel, folders: None, param: str, value: object
) -> None:
    for layer in (served, PortalConfig()):
        setattr(layer, param, value)
        with pytest.raises(InvalidInput) as refusal:
            launch_rules.check(layer)
        assert refusal.value.param == param


def test_what_lies_in_a_machines_model_folder_is_taken(served: ServedModel, folders: None) -> None:
    served.lora, served.draft_model = ["/srv/models/deep/a.gguf"], "/srv/models/draft.gguf"
    served.binary = "/opt/llama-server"
    launch_rules.check(served)


def test_the_machine_itself_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "MODELS_DIRS", [tmp_path / "models"])
    named_files.check_readable([str(tmp_path / "models" / "a.gguf")])
    with pytest.raises(InvalidInput, match="isn't in a model folder of this machine"):
        named_files.check_readable([str(tmp_path / "a.gguf")])


def test_only_programs_that_the_settings_name_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    binary = as_binary(tmp_path)
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", "")
    with pytest.raises(EngineMissing, match="doesn't allow"):
        engine.find(str(binary))
    monkeypatch.setattr(env, "LLAMA_SERVER_BINS", [str(binary), str(tmp_path / "absent")])
    assert engine.find(str(binary)).command == (str(binary),)
    with pytest.raises(EngineMissing, match="isn't a program"):
        engine.find(str(tmp_path / "absent"))
    binary.chmod(0o757)
    with pytest.raises(EngineMissing, match="everybody on the machine may write"):
        engine.find(str(binary))


def test_a_machine_says_what_it_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = as_binary(tmp_path)
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(binary))
    monkeypatch.setattr(env, "LLAMA_SERVER_BINS", ["/opt/other", str(binary)])
    assert named_files.programs() == [str(binary), "/opt/other"]
