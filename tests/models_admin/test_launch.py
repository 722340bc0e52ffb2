import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llamaproj import env
from llamaproj.errors import InvalidInput
from models_admin.engine import embedded_engine, engine, launch, launch_config, process
from models_admin.engine.engine import Engine
from models_admin.engine.launch import LaunchSpec
from models_admin.engine.launch_config import LaunchConfig
from models_admin.errors import EngineMissing, NoPort
from tests.fake_engine import as_binary

NEW = Engine(
    ("llama-server",), "new", frozenset({"--no-ui", "--metrics", "--alias", "--gpu-layers", "--cache-ram"})
)
OLD = Engine(("llama-server",), "old", frozenset({"--no-webui"}))


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are named may lie anywhere: `test_named_files` is about where they may."""
    monkeypatch.setattr(env, "MODELS_DIRS", [Path("/")])


def spec(**fields: object) -> LaunchSpec:
    known = {
        "model_path": "/m.gguf",
        "alias": "m",
        "host": "127.0.0.1",
        "port": 20_000,
    }
    config = {"context_tokens": 1024, "slots": 4} | {
        name: fields.pop(name) for name in list(fields) if name in launch_config.NAMES and name != "host"
    }
    return LaunchSpec(**known | fields, config=LaunchConfig(**config))  # type: ignore[arg-type]


def test_the_context_is_that_of_all_slots_together() -> None:
    argv = spec().argv(NEW)
    assert argv[argv.index("--ctx-size") + 1] == "4096"
    assert argv[argv.index("--parallel") + 1] == "4"


def test_a_build_gets_only_flags_it_knows() -> None:
    assert "--no-ui" in spec().argv(NEW)
    assert "--no-webui" in spec().argv(OLD)
    assert "--metrics" not in spec().argv(OLD)
    assert spec(gpu_layers=0).argv(NEW)[-2:] == ["--gpu-layers", "0"]
    with pytest.raises(InvalidInput, match="doesn't know --lora"):
        spec(lora=("/adapter.gguf",)).argv(NEW)


def test_a_chosen_prompt_cache_wins() -> None:
    assert spec(extra_flags=("--cache-ram", "1024")).argv(NEW).count("--cache-ram") == 1


def test_the_key_is_never_an_argument() -> None:
    assert not any("key" in word for word in spec().argv(NEW))


@pytest.mark.parametrize(
    "flags",
    [
        ["--mlock"],
        ["--cache-type-k", "q8_0", "--no-mmap"],
        ["--temp", "-1"],
        ["--override-kv", "tokenizer.ggml.add_bos_token=bool:false"],
        [],
    ],
)
def test_useful_flags_are_allowed(flags: list[str]) -> None:
    launch.check_extra_flags(flags)


@pytest.mark.parametrize(
    "flags",
    [
        ["--host", "0.0.0.0"],
        ["--port", "1"],
        ["--api-key", "x"],
        ["--model", "/etc/passwd"],
        ["--slot-save-path", "/"],
        ["--log-file", "/etc/x"],
        ["--tools", "all"],
        ["-c", "1"],
        ["--temp"],
        ["--temp", "--mlock"],
        ["--temp", "$(reboot)"],
        ["--temp", "1\n2"],
        ["--temp=1"],
        ["mlock"],
        ["--mlock"] * 41,
        "--mlock",
        [1],
        None,
        {"--mlock": 1},
    ],
)
def test_other_flags_are_refused(flags: object) -> None:
    with pytest.raises(InvalidInput):
        launch.check_extra_flags(flags)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields", [{"model_path": "m.gguf"}, {"alias": "-x"}, {"alias": "a b"}, {"port": 0}, {"slots": 0}]
)
def test_a_specification_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        spec(**fields)


def test_a_port_that_is_in_use_or_promised_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        used = listening.getsockname()[1]
        only = range(used, used + 1)
        with pytest.raises(NoPort, match=f"No port from {used} to {used} is free at 127.0.0.1"):
            launch.free_port("127.0.0.1", frozenset(), only)
    assert launch.free_port("127.0.0.1", frozenset(), only) == used
    with pytest.raises(NoPort, match="Allow more of them"):
        launch.free_port("127.0.0.1", frozenset({used}), only)


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "no-such-host.invalid"])
def test_an_address_that_the_machine_does_not_have_is_named(host: str) -> None:
    with pytest.raises(NoPort, match=f"has no address {host}"):
        launch.free_port(host, frozenset(), range(20_000, 20_002))


@pytest.fixture
def path_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_the_named_binary_comes_first_then_path_then_the_embedded(
    path_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.find().name == "embedded"
    as_binary(path_folder).rename(path_folder / "llama-server")
    assert engine.find().command == (str(path_folder / "llama-server"),)
    named = as_binary(tmp_path_factory.mktemp("named"))
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(named))
    assert engine.find().command == (str(named),)


def test_the_embedded_engine_knows_every_flag_we_use(path_folder: Path) -> None:
    embedded = engine.find()
    every = spec(threads=2, gpu_layers=1, slot_save_path="/tmp").argv(embedded)
    assert {
        "--no-ui",
        "--metrics",
        "--slots",
        "--no-kv-unified",
        "--alias",
        "--batch-size",
        "--ubatch-size",
    } <= set(every)
    assert {"--slot-save-path", "--threads", "--gpu-layers", "--cache-ram"} <= set(every)


def test_the_embedded_engine_takes_every_launch_parameter(path_folder: Path, demo_model: Path) -> None:
    model = str(demo_model)
    everything = spec(
        model_path=model,
        projector_path=model,
        threads=2,
        threads_batch=3,
        gpu_layers=1,
        split_mode="layer",
        tensor_split="3,1",
        main_gpu=1,
        flash_attention="on",
        cache_type_k="q8_0",
        cache_type_v="q8_0",
        embeddings=True,
        pooling="rank",
        reranking=True,
        lora=(model, model),
        draft_model=model,
        chat_template="{{ messages }}",
        isolation="strict",
    ).argv(engine.find())
    params = embedded_engine.params_from(everything[everything.index("--model") :])
    assert (params.main_gpu, params.cpuparams_batch.n_threads, params.cache_prompt) == (1, 3, False)
    assert (len(params.lora_adapters), params.mmproj.path) == (2, model)
    assert (params.speculative.draft.mparams.path, params.pooling_type.name) == (
        model,
        "LLAMA_POOLING_TYPE_RANK",
    )


def test_a_binary_that_cannot_be_run_is_a_sentence(
    path_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = path_folder / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(broken))
    with pytest.raises(EngineMissing, match="can't be run"):
        engine.find()


def test_our_secrets_do_not_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_HOST", "0.0.0.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    given = env.outside_environment()
    assert given["CUDA_VISIBLE_DEVICES"] == "1"
    assert not {"SECRET_KEY", "DATABASE_URL", "REDIS_URL", "ADMIN_PASSWORD", "LLAMA_ARG_HOST"} & set(given)


def test_a_binary_that_is_being_asked_ends_with_the_portal(
    path_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = path_folder / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(env, "LLAMA_SERVER_BIN", str(slow))
    with ThreadPoolExecutor(1) as worker:
        asking = worker.submit(engine.find)
        deadline = time.monotonic() + 30
        while not (found := list(process.with_mark(process.mark_of_all()))):
            assert time.monotonic() < deadline
        for one in found:
            one.kill()
        with pytest.raises(EngineMissing):
            asking.result(30)
