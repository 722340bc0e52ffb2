"""A stand-in for `llama-server`: the same flags, over the engine that comes as a wheel.

    python -m models_admin.engine.embedded_engine --model FILE --port 8080 --api-key-file KEYS

A program of its own, spawned as an official build is, so it knows neither Django nor our settings; its
environment is llama-server's (`LLAMA_API_KEY`). SIGTERM and SIGINT keep their default action on purpose: the
engine holds Python's lock while it loads, so a handler written in Python would run too late, and nothing here
needs tidying.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

# The engine itself is loaded only where it runs: others ask this module which flags it takes.
if TYPE_CHECKING:
    import xllamacpp

    Params: TypeAlias = xllamacpp.CommonParams

_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_AUTO_SLOTS = 4
_GPU_LAYERS = {"auto": -1, "all": -2}
_FLASH_ATTENTION = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
_POOLING = ("none", "mean", "cls", "last", "rank")
_SPLIT_MODES = ("none", "layer", "row")
_REASONING = {"none": "NONE", "auto": "AUTO", "deepseek": "DEEPSEEK", "deepseek-legacy": "DEEPSEEK_LEGACY"}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        sys.stdout.write(f"{version()}\n")
        parser.exit(0)


def flags() -> frozenset[str]:
    """Every flag this engine takes."""
    return frozenset(parser()._option_string_actions)


def parser() -> argparse.ArgumentParser:
    """The flags of llama-server that this engine honours; one not given leaves the engine's default."""
    made = _Parser("llama-server (embedded)", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    add = made.add_argument

    add("--version", action=_Version, nargs=0, help="print the build and exit")
    add("-m", "--model", type=_file, required=True, metavar="FILE")
    add("-a", "--alias", metavar="NAME[,NAME]")
    add("-mm", "--mmproj", type=_file, metavar="FILE")

    add("--lora", type=_files, action="extend", metavar="FILE[,FILE]")
    add("-md", "--model-draft", "--spec-draft-model", dest="model_draft", type=_file, metavar="FILE")
    add("--draft-max", "--draft", "--draft-n", dest="draft_max", type=_number(0))
    add("--draft-min", "--draft-n-min", dest="draft_min", type=_number(0))

    add("--host", action="append")
    add("--port", type=_number(0, 65535))
    add("--api-key", action="append", metavar="KEY[,KEY]")
    add("--api-key-file", type=_file, metavar="FILE", help="one key a line")
    add("--api-prefix")
    add("-to", "--timeout", type=_number(1), metavar="SECONDS")
    add("--threads-http", type=_number(-1))
    add("--ui", "--webui", dest="ui", action="store_true")
    add("--no-ui", "--no-webui", dest="ui", action="store_false")
    add("--metrics", action="store_true")
    add("--props", action="store_true")
    add("--slots", dest="slots", action="store_true")
    add("--no-slots", dest="slots", action="store_false")
    add("--slot-save-path", type=_folder, metavar="FOLDER")
    add("-sps", "--slot-prompt-similarity", type=float)

    add("-c", "--ctx-size", type=_number(0))
    add("-np", "--parallel", type=_number(-1))
    add("-kvu", "--kv-unified", dest="kv_unified", action="store_true")
    add("-no-kvu", "--no-kv-unified", dest="kv_unified", action="store_false")
    add("-b", "--batch-size", type=_number(1))
    add("-ub", "--ubatch-size", type=_number(1))
    add("-n", "--predict", "--n-predict", dest="predict", type=_number(-1))
    add("--keep", type=_number(-1))
    add("-cram", "--cache-ram", type=_number(-1), metavar="MIB")
    add("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints", dest="ctx_checkpoints", type=_number(0))
    add("--cache-reuse", type=_number(0))
    add("--cache-prompt", dest="cache_prompt", action="store_true")
    add("--no-cache-prompt", dest="cache_prompt", action="store_false")
    add("-cb", "--cont-batching", dest="cont_batching", action="store_true")
    add("-nocb", "--no-cont-batching", dest="cont_batching", action="store_false")
    add("--context-shift", dest="ctx_shift", action="store_true")
    add("--no-context-shift", dest="ctx_shift", action="store_false")
    add("--swa-full", action="store_true")

    add("-t", "--threads", type=_number(-1))
    add("-tb", "--threads-batch", type=_number(-1))
    add("-ngl", "--gpu-layers", "--n-gpu-layers", dest="gpu_layers", type=_gpu_layers, metavar="N|auto|all")
    add("-mg", "--main-gpu", type=_number(0))
    add("-sm", "--split-mode", choices=_SPLIT_MODES)
    add("-ts", "--tensor-split", type=_shares, metavar="N,N")
    add("-fa", "--flash-attn", choices=_FLASH_ATTENTION, nargs="?", const="on")
    add("-ctk", "--cache-type-k", choices=_CACHE_TYPES)
    add("-ctv", "--cache-type-v", choices=_CACHE_TYPES)
    add("-nkvo", "--no-kv-offload", action="store_true")
    add("--mlock", action="store_true")
    add("--no-mmap", action="store_true")
    add("--warmup", dest="warmup", action="store_true")
    add("--no-warmup", dest="warmup", action="store_false")

    add("--embedding", "--embeddings", dest="embeddings", action="store_true")
    add("--rerank", "--reranking", dest="reranking", action="store_true")
    add("--pooling", choices=_POOLING)

    add("--jinja", dest="jinja", action="store_true")
    add("--no-jinja", dest="jinja", action="store_false")
    add("--chat-template", metavar="TEMPLATE")
    add("--chat-template-file", type=_file, metavar="FILE")
    add("--reasoning-format", choices=_REASONING)
    add("-s", "--seed", type=_number(-1))
    add("--temp", type=float)
    add("--top-k", type=_number(0))
    add("--top-p", type=float)
    add("--min-p", type=float)

    add("-lv", "--verbosity", "--log-verbosity", dest="verbosity", type=_number(0))
    add("-v", "--verbose", "--log-verbose", dest="verbosity", action="store_const", const=4)
    add("--log-json", action="store_true", help="one JSON object a line")
    return made


def params_from(argv: Sequence[str], *, environment_key: str = "") -> Params:
    """The engine's parameters for llama-server's `argv`; exits with status 2 and a sentence where it is wrong."""
    import xllamacpp

    given = vars(parser().parse_args(argv))
    params = xllamacpp.CommonParams()
    params.n_parallel, params.kv_unified = _AUTO_SLOTS, True
    params.port = 8080
    if environment_key:
        given.setdefault("api_key", []).append(environment_key)
    for name, value in given.items():
        _SETTERS[name](params, value)
    if given.get("parallel", -1) > 0:
        params.n_parallel, params.kv_unified = given["parallel"], given.get("kv_unified", False)
    return params


def version() -> str:
    """What this engine is, in one line."""
    import xllamacpp

    build = xllamacpp.BUILD_INFO
    return f"version: {xllamacpp.__version__} (xllamacpp, {build['compiler']}, {build['build_target']})"


def main() -> int:
    """Serve until a signal ends the process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import xllamacpp

    params = params_from(sys.argv[1:], environment_key=os.environ.get("LLAMA_API_KEY", ""))
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stderr.write(f"llama-server (embedded): serving on {server.listening_address}\n")
    # The engine serves on threads of its own; this one only keeps the process.
    threading.Event().wait()
    return 0


# Reading values ---------------------------------------------------------------------------------------------


def _file(text: str) -> str:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return text


def _files(text: str) -> list[str]:
    return [_file(one) for one in text.split(",")]


def _shares(text: str) -> list[float]:
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from None


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return text


def _number(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
        return value

    return parse


def _gpu_layers(text: str) -> int:
    return _GPU_LAYERS[text] if text in _GPU_LAYERS else _number(-2)(text)


# Setting parameters -----------------------------------------------------------------------------------------

Setter: TypeAlias = "Callable[[Params, Any], None]"


def _plain(attribute: str) -> Setter:
    def set_(params: Params, value: Any) -> None:
        setattr(params, attribute, value)

    return set_


def _sampling(attribute: str) -> Setter:
    def set_(params: Params, value: Any) -> None:
        setattr(params.sampling, attribute, value)

    return set_


def _constant(attribute: str, kind: str, prefix: str, names: dict[str, str] | None = None) -> Setter:
    """One of the engine's enumerations, by llama-server's word for it."""

    def set_(params: Params, word: str) -> None:
        import xllamacpp

        setattr(
            params, attribute, getattr(xllamacpp, kind)[f"{prefix}_{names[word] if names else word.upper()}"]
        )

    return set_


def _cache_type(attribute: str) -> Setter:
    def set_(params: Params, value: str) -> None:
        import xllamacpp

        names = {kind.name.removeprefix("GGML_TYPE_").lower(): kind for kind in xllamacpp.ggml_type}
        setattr(params, attribute, names[value])

    return set_


def _model(params: Params, path: str) -> None:
    params.model.path = path


def _mmproj(params: Params, path: str) -> None:
    params.mmproj.path = path


def _lora(params: Params, paths: list[str]) -> None:
    import xllamacpp

    adapters = []
    for path in paths:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, 1.0
        adapters.append(adapter)
    params.lora_adapters = adapters


def _model_draft(params: Params, path: str) -> None:
    import xllamacpp

    params.speculative.draft.mparams.path = path
    # Without this the engine loads it and drafts nothing.
    params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]


def _draft(attribute: str) -> Setter:
    def set_(params: Params, value: int) -> None:
        setattr(params.speculative.draft, attribute, value)

    return set_


def _tensor_split(params: Params, shares: list[float]) -> None:
    # The engine has a place for every device it could have.
    known = list(params.tensor_split)
    params.tensor_split = [*shares, *known[len(shares) :]][: len(known)]


def _alias(params: Params, names: str) -> None:
    params.model_alias = {name.strip() for name in names.split(",") if name.strip()}


def _keys(params: Params, given: list[str]) -> None:
    keys = [key.strip() for part in given for key in part.split(",") if key.strip()]
    params.api_keys = [*params.api_keys, *keys]


def _key_file(params: Params, path: str) -> None:
    _keys(params, Path(path).read_text(encoding="utf-8").splitlines())


def _timeout(params: Params, seconds: int) -> None:
    params.timeout_read = params.timeout_write = seconds


def _slot_save_path(params: Params, folder: str) -> None:
    # The engine joins folder and file name as text.
    params.slot_save_path = folder.rstrip("/") + "/"


def _threads(params: Params, count: int) -> None:
    params.cpuparams.n_threads = count


def _threads_batch(params: Params, count: int) -> None:
    params.cpuparams_batch.n_threads = count


def _load_mode(mode: str) -> Setter:
    def set_(params: Params, value: bool) -> None:
        import xllamacpp

        params.load_mode = xllamacpp.llama_load_mode[f"LLAMA_LOAD_MODE_{mode}"]

    return set_


def _reranking(params: Params, value: bool) -> None:
    params.embedding = True
    _SETTERS["pooling"](params, "rank")


def _chat_template_file(params: Params, path: str) -> None:
    params.chat_template = Path(path).read_text(encoding="utf-8")


def _nothing(params: Params, value: object) -> None:
    """`--parallel` decides together with `--kv-unified`, after the others."""


def _seed(params: Params, seed: int) -> None:
    params.sampling.seed = seed % 2**32


_SETTERS: dict[str, Setter] = {
    "model": _model,
    "alias": _alias,
    "mmproj": _mmproj,
    "lora": _lora,
    "model_draft": _model_draft,
    "draft_max": _draft("n_max"),
    "draft_min": _draft("n_min"),
    "host": _plain("hostnames"),
    "port": _plain("port"),
    "api_key": _keys,
    "api_key_file": _key_file,
    "api_prefix": _plain("api_prefix"),
    "timeout": _timeout,
    "threads_http": _plain("n_threads_http"),
    "ui": _plain("ui"),
    "metrics": _plain("endpoint_metrics"),
    "props": _plain("endpoint_props"),
    "slots": _plain("endpoint_slots"),
    "slot_save_path": _slot_save_path,
    "slot_prompt_similarity": _plain("slot_prompt_similarity"),
    "ctx_size": _plain("n_ctx"),
    "parallel": _nothing,
    "kv_unified": _plain("kv_unified"),
    "batch_size": _plain("n_batch"),
    "ubatch_size": _plain("n_ubatch"),
    "predict": _plain("n_predict"),
    "keep": _plain("n_keep"),
    "cache_ram": _plain("cache_ram_mib"),
    "ctx_checkpoints": _plain("n_ctx_checkpoints"),
    "cache_reuse": _plain("n_cache_reuse"),
    "cache_prompt": _plain("cache_prompt"),
    "cont_batching": _plain("cont_batching"),
    "ctx_shift": _plain("ctx_shift"),
    "swa_full": _plain("swa_full"),
    "threads": _threads,
    "threads_batch": _threads_batch,
    "gpu_layers": _plain("n_gpu_layers"),
    "main_gpu": _plain("main_gpu"),
    "tensor_split": _tensor_split,
    "split_mode": _constant("split_mode", "llama_split_mode", "LLAMA_SPLIT_MODE"),
    "flash_attn": _constant(
        "flash_attn_type", "llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE", _FLASH_ATTENTION
    ),
    "cache_type_k": _cache_type("cache_type_k"),
    "cache_type_v": _cache_type("cache_type_v"),
    "no_kv_offload": _plain("no_kv_offload"),
    "mlock": _load_mode("MMAP_MLOCK"),
    "no_mmap": _load_mode("NONE"),
    "warmup": _plain("warmup"),
    "embeddings": _plain("embedding"),
    "reranking": _reranking,
    "pooling": _constant("pooling_type", "llama_pooling_type", "LLAMA_POOLING_TYPE"),
    "jinja": _plain("use_jinja"),
    "chat_template": _plain("chat_template"),
    "chat_template_file": _chat_template_file,
    "reasoning_format": _constant(
        "reasoning_format", "common_reasoning_format", "COMMON_REASONING_FORMAT", _REASONING
    ),
    "seed": _seed,
    "temp": _sampling("temp"),
    "top_k": _sampling("top_k"),
    "top_p": _sampling("top_p"),
    "min_p": _sampling("min_p"),
    "verbosity": _plain("verbosity"),
    "log_json": _plain("log_json"),
}


if __name__ == "__main__":
    sys.exit(main())
