import struct
import tempfile
from pathlib import Path

import pytest
from gguf.constants import GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models_admin.gguf_header import read
from models_admin.gguf_info import GGUFError
from tests.models_admin import gguf_files as g


def reason(path: Path, data: bytes) -> str:
    with pytest.raises(GGUFError) as caught:
        read(g.write(path, data))
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_the_demo_model_describes_itself(demo_model: Path) -> None:
    info = read(demo_model)
    assert info.architecture == "llama"
    assert info.parameters == 134_515_008
    assert info.quantization == "Q4_1"
    assert info.context_tokens == 8192
    assert info.tied_output
    assert "<|im_start|>" in info.chat_template
    assert info.tensor_bytes == 96_576_768


def test_a_small_model_is_read_to_its_end(path: Path) -> None:
    info = read(g.write(path, g.small_model()))
    assert (info.name, info.parameters, info.tensor_bytes, info.quantization) == ("Tiny", 64, 256, "F32")
    assert info.embedding_bytes == 256


def test_vocabularies_are_passed_over_and_short_lists_are_kept(path: Path) -> None:
    words = g.array("tokenizer.ggml.tokens", GGUFValueType.STRING, 3000, g.text("x") * 3000)
    scores = g.array("tokenizer.ggml.scores", GGUFValueType.FLOAT32, 3000, bytes(12_000))
    heads = g.array("llama.attention.head_count_kv", GGUFValueType.INT32, 3, struct.pack("<3i", 4, 2, 4))
    info = read(g.write(path, g.small_model(words, scores, heads)))
    assert info.metadata["tokenizer.ggml.tokens"] is None
    assert info.per_layer("attention.head_count_kv", 3) == [4, 2, 4]
    assert info.number("attention.head_count_kv") == 4


def test_what_databases_refuse_is_left_out(path: Path) -> None:
    infinite = g.pair("a", GGUFValueType.FLOAT32, struct.pack("<f", float("inf")))
    info = read(g.write(path, g.small_model(infinite, g.word("b", b"x\0y\xff"))))
    assert info.metadata["a"] is None
    assert info.metadata["b"] == "xy\ufffd"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "too short"),
        (b"hello, I am no model at all", "isn't a GGUF file"),
        (g.MAGIC + struct.pack(">IQQ", 3, 0, 0), "other byte order"),
        (g.header([], [], version=1), "version 1 isn't supported"),
        (g.MAGIC + struct.pack("<IQQ", 3, 2**60, 2**60), "it is damaged"),
        (g.header([g.text("k") + struct.pack("<I", 99)], []), "unknown type 99"),
        (g.header([g.array("k", GGUFValueType.UINT8, 2**60)], []), "ends in the middle"),
        (g.header([g.array("k", GGUFValueType.STRING, 2**60)], []), "it is damaged"),
        (g.header([g.array("k", GGUFValueType.ARRAY, 2**60)], []), "it is damaged"),
        (g.header([struct.pack("<Q", 2**62)], []), "text of"),
        (g.whole([], [g.tensor("x", 8)], 32), "which architecture"),
        (g.whole([g.word("general.architecture", "clip")], [g.tensor("x", 8)], 32), "projector"),
        (g.header([g.word("general.architecture", "llama")], []), "vocabulary only"),
        (g.header([g.word("general.architecture", "llama")], [g.tensor("x", 8, kind=77)]), "unknown type"),
        (g.header([], [g.tensor("x", *[2] * 9)]), "9 dimensions"),
        (g.header([], [g.tensor("x", 2**40, 2**40)]), "larger than the file"),
        (g.header([g.number("general.alignment", 0)], [g.tensor("x", 1)]), "alignment"),
        (g.small_model()[:-1], "incomplete"),
        (g.small_model()[:40], "ends in the middle"),
    ],
)
def test_a_broken_file_says_why(path: Path, data: bytes, words: str) -> None:
    assert words in reason(path, data)


def test_nested_lists_do_not_exhaust_the_stack(path: Path) -> None:
    nested = struct.pack("<IQ", GGUFValueType.ARRAY, 1) * 5000
    assert "nested" in reason(path, g.header([g.pair("k", GGUFValueType.ARRAY, nested)], []))


def test_the_parts_of_a_split_model_are_taken_together(tmp_path: Path) -> None:
    def part(number: int) -> bytes:
        pairs = [
            g.word("general.architecture", "llama"),
            g.number("split.no", number),
            g.number("split.count", 2),
        ]
        return g.whole(pairs, [g.tensor(f"part{number}", 8)], 32)

    first = g.write(tmp_path / "m-00001-of-00002.gguf", part(0))
    assert "Part 2 of 2 is missing" in reason(first, part(0))
    second = g.write(tmp_path / "m-00002-of-00002.gguf", part(1))
    info = read(first)
    assert (info.parts, info.parameters, info.tensor_bytes) == (2, 16, 64)
    assert "first stands for all" in reason(second, part(1))
    assert "doesn't end in" in reason(tmp_path / "renamed.gguf", part(0))


def test_a_folder_in_place_of_a_file_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="can't be read"):
        read(tmp_path)


_VALID = g.small_model(
    g.array("tokenizer.ggml.tokens", GGUFValueType.STRING, 3, g.text("a") * 3),
    g.array("llama.list", GGUFValueType.FLOAT64, 2, bytes(16)),
)


@settings(max_examples=200, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda tail: _VALID[:24] + tail),
        st.tuples(st.integers(0, len(_VALID) - 9), st.binary(min_size=1, max_size=8)).map(
            lambda change: _VALID[: change[0]] + change[1] + _VALID[change[0] + len(change[1]) :]
        ),
        st.integers(0, len(_VALID)).map(lambda end: _VALID[:end]),
    )
)
def test_no_bytes_do_worse_than_a_sentence(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = g.write(Path(folder, "model.gguf"), data)
        try:
            info = read(path)
        except GGUFError:
            return
        assert 0 < info.tensor_bytes <= len(data)
        assert info.context_tokens is None or info.context_tokens > 0
