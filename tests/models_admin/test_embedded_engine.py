import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest

from llamaproj import env
from models_admin.engine import embedded_engine
from tests.conftest import Engine
from tests.portal import free_port

COMMAND = [sys.executable, "-m", "models_admin.engine.embedded_engine"]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *flags], cwd=env.BASE_DIR, capture_output=True, text=True, timeout=60)


def test_flags_become_parameters(demo_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n\ntwo\n")
    given = f"-m {demo_model} --port 1234 --host 127.0.0.1 -c 8192 -np 2 --no-kv-unified -b 512 -ub 128 -t 3 -ngl all"
    more = f"-fa on -ctk q8_0 --metrics --no-slots --no-ui --api-key-file {keys} --alias a,b --no-mmap"
    folder = ["--slot-save-path", str(tmp_path)]
    params = embedded_engine.params_from([*given.split(), *more.split(), *folder], environment_key="three")
    assert (params.port, params.hostnames, params.n_ctx, params.n_parallel) == (1234, ["127.0.0.1"], 8192, 2)
    assert (params.kv_unified, params.n_batch, params.n_ubatch, params.cpuparams.n_threads) == (
        False,
        512,
        128,
        3,
    )
    assert (params.endpoint_metrics, params.endpoint_slots, params.ui, params.n_gpu_layers) == (
        True,
        False,
        False,
        -2,
    )
    assert set(params.api_keys) == {"one", "two", "three"}
    assert params.model_alias == {"a", "b"}
    assert params.cache_type_k.name == "GGML_TYPE_Q8_0"
    assert params.slot_save_path == f"{tmp_path}/"


def test_additions_to_a_model_become_parameters(demo_model: Path) -> None:
    model = str(demo_model)
    given = f"-m {model} --lora {model} --lora {model},{model} -md {model} --draft-max 8 --tensor-split 3,1"
    params = embedded_engine.params_from(given.split())
    assert [(one.path, one.scale) for one in params.lora_adapters] == [(model, 1.0)] * 3
    assert (params.speculative.draft.mparams.path, params.speculative.draft.n_max) == (model, 8)
    assert params.tensor_split[:3] == [3.0, 1.0, 0.0]
    assert len(params.tensor_split) == 128


def test_without_slots_given_four_share_one_cache(demo_model: Path) -> None:
    params = embedded_engine.params_from(["--model", str(demo_model)])
    assert (params.n_parallel, params.kv_unified) == (4, True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "--model"),
        ("-m /nowhere", "no file"),
        ("-m {model} --nonsense", "--nonsense"),
        ("-m {model} --port 70000", "not between"),
        ("-m {model} -np many", "not a whole number"),
        ("-m {model} --cache-type-k q9", "invalid choice"),
        ("-m {model} --alia x", "--alia"),
        ("-m {model} --lora {model},/nowhere", "no file"),
        ("-m {model} --tensor-split 3;1", "no list of numbers"),
    ],
)
def test_a_wrong_flag_ends_it_with_a_sentence(
    flags: str, words: str, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        embedded_engine.params_from(flags.format(model=demo_model).split())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said


@pytest.mark.slow
def test_it_says_its_version_and_refuses_a_broken_model(tmp_path: Path) -> None:
    assert run("--version").stdout.startswith("version: ")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    done = run("--model", str(broken), "--port", str(free_port()))
    assert done.returncode == 1
    assert "error: " in done.stderr


@pytest.mark.slow
def test_it_asks_for_the_key_and_serves(engine: Engine) -> None:
    assert httpx.get(f"{engine.base_url}/health").status_code == 200
    assert httpx.get(f"{engine.base_url}/slots").status_code == 401
    headers = {"authorization": f"Bearer {engine.api_key}"}
    slots = httpx.get(f"{engine.base_url}/slots", headers=headers).json()
    assert [slot["n_ctx"] for slot in slots] == [2048, 2048]
    assert "llamacpp:tokens_predicted_total" in httpx.get(f"{engine.base_url}/metrics", headers=headers).text


def adapter(path: Path) -> Path:
    """A LoRA adapter that changes the demo model a little."""
    writer, rank, width = gguf.GGUFWriter(path, "llama"), 4, 576
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", rank)
    for name, shape in (("lora_a", (rank, width)), ("lora_b", (width, rank))):
        writer.add_tensor(f"blk.0.attn_q.weight.{name}", np.full(shape, 0.001, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
def test_it_takes_an_adapter_and_drafts_with_a_second_model(demo_model: Path, tmp_path: Path) -> None:
    port, lora = free_port(), adapter(tmp_path / "lora.gguf")
    flags = ["--model", str(demo_model), "--port", str(port), "--host", "127.0.0.1", "--ctx-size", "256"]
    more = ["--parallel", "1", "--lora", str(lora), "--model-draft", str(demo_model)]
    with subprocess.Popen([*COMMAND, *flags, *more], cwd=env.BASE_DIR, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        while _status(url) != 200:
            assert process.poll() is None
        assert httpx.get(f"{url}/lora-adapters").json()[0]["path"] == str(lora)
        body = {"prompt": "One, two, three,", "max_tokens": 8, "temperature": 0}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
        assert answer["timings"]["draft_n"] > 0
        process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["loading", "writing"])
def test_it_ends_at_once_on_sigterm(moment: str, demo_model: Path) -> None:
    port = free_port()
    flags = ["--model", str(demo_model), "--port", str(port), "--host", "127.0.0.1", "--ctx-size", "4096"]
    with subprocess.Popen([*COMMAND, *flags], cwd=env.BASE_DIR, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        wanted = 503 if moment == "loading" else 200
        while _status(url) not in {wanted, 200}:
            assert process.poll() is None
        if moment == "writing":
            body = {
                "messages": [{"role": "user", "content": "Tell a story."}],
                "stream": True,
                "max_tokens": 2000,
            }
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
                next(answer.iter_bytes())
                _ends(process)
        else:
            _ends(process)


def _ends(process: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    assert time.monotonic() - began < 1


def _status(url: str) -> int:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code
    except httpx.HTTPError:
        return 0
