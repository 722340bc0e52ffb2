import os
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf.constants import GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models_admin.files.gguf_header import read
from models_admin.files.gguf_info import GGUFError, UnreadableError
from tests.models_admin import gguf_files as g

_LLAMA = g.word("general.architecture", "llama")


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
        (g.header([struct.pack("<Q", 2**62)], []), "name of"),
        (g.whole([], [g.tensor("x", 8)], 32), "which architecture"),
        (g.whole([g.word("general.type", "imatrix")], [g.tensor("x", 8)], 32), "importance matrix"),
        (g.header([g.word("general.architecture", "llama")], []), "vocabulary only"),
        (g.header([g.word("general.architecture", "llama")], [g.tensor("x", 8, kind=77)]), "unknown type"),
        (g.header([], [g.tensor("x", *[2] * 9)]), "9 dimensions"),
        (g.header([], [g.tensor("x", 2**40, 2**40)]), "larger than the file"),
        (g.header([g.number("general.alignment", 0)], [g.tensor("x", 1)]), "alignment"),
        (g.header([g.number("general.alignment", 24)], [g.tensor("x", 1)]), "alignment"),
        (g.whole([_LLAMA], [g.tensor("x", 8), g.tensor("y", 8)], 64), "same place"),
        (g.whole([_LLAMA], [g.tensor("x", 8), g.tensor("x", 8, offset=32)], 64), "two tensors 'x'"),
        (g.whole([_LLAMA, _LLAMA], [g.tensor("x", 8)], 32), "two entries"),
        (g.whole([_LLAMA], [g.tensor("x", 8, offset=16)], 64), "isn't where it may be"),
        (g.whole([_LLAMA], [g.tensor("x", 8, kind=8)], 64), "rows that its type can't have"),
        (g.small_model(g.number("llama.block_count", 2**30)), "block_count of 1,073,741,824"),
        (g.small_model()[:-1], "incomplete"),
        (g.small_model()[:40], "ends in the middle"),
    ],
)
def test_a_broken_file_says_why(path: Path, data: bytes, words: str) -> None:
    assert words in reason(path, data)


def test_nested_lists_do_not_exhaust_the_stack(path: Path) -> None:
    nested = struct.pack("<IQ", GGUFValueType.ARRAY, 1) * 5000
    assert "nested" in reason(path, g.header([g.pair("k", GGUFValueType.ARRAY, nested)], []))


def test_projectors_and_adapters_say_what_they_are(path: Path) -> None:
    info = read(g.write(path, g.projector("Tiny", 64)))
    assert (info.is_projector, info.is_adapter, info.width) == (True, False, 64)
    info = read(g.write(path, g.adapter()))
    assert (info.is_projector, info.is_adapter) == (False, True)
    assert read(g.write(path, g.projector(width=768, projector_type="mlp"))).width is None


def test_the_parts_of_a_split_model_are_taken_together(tmp_path: Path) -> None:
    first, second = g.write_parts(tmp_path, "m", 2)
    info = read(first)
    assert (info.parts, info.parameters, info.tensor_bytes) == (2, 16, 64)
    assert info.size_bytes == first.stat().st_size + second.stat().st_size
    assert info.tensor_types == {"F32": 64}
    assert "first stands for all" in reason(second, g.part(2, 2))
    assert "doesn't end in" in reason(tmp_path / "renamed.gguf", g.part(1, 2))
    assert "header says it is whole" in reason(first, g.small_model())


@pytest.mark.parametrize("head_alone", [False, True])
def test_what_llama_cpps_own_writer_splits_is_one_model(tmp_path: Path, head_alone: bool) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2, small_first_shard=head_alone)
    writer.add_name("Split")
    writer.add_context_length(2048)
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight", "output.weight"):
        writer.add_tensor(name, np.ones((4, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first, *others = sorted(tmp_path.glob("*.gguf"))
    info = read(first)
    assert (info.name, info.parts, info.parameters) == ("Split", len(others) + 1, 512)
    assert (info.quantization, info.tied_output, info.embedding_bytes) == ("F16", False, 256)
    assert len(others) == 1 + head_alone


def test_a_part_that_is_missing_or_broken_or_anothers_is_named(tmp_path: Path) -> None:
    first, second = g.write_parts(tmp_path, "m", 2)
    second.write_bytes(b"GGUF, but no more")
    assert second.name in reason(first, first.read_bytes())
    second.write_bytes(g.part(3, 3))
    assert f"{second.name} isn't part 2" in reason(first, first.read_bytes())
    second.unlink()
    assert f"Part 2 of 2 is missing: {second.name}" in reason(first, first.read_bytes())


def test_the_same_content_has_the_same_id_wherever_it_lies(tmp_path: Path) -> None:
    data = bytes(range(256))
    one, two = (read(g.write(tmp_path / name, g.small_model(data=data))) for name in ("a.gguf", "x/b.gguf"))
    assert one.content_id == two.content_id
    assert len(one.content_id) == 64
    for other in (
        g.small_model(data=data[:-1] + b"x"),
        g.small_model(g.word("general.name", "Tiny 2"), data=data),
        g.small_model(data=data + b"more"),
    ):
        assert read(g.write(tmp_path / "c.gguf", other)).content_id != one.content_id


def test_every_part_of_a_split_model_counts_for_its_id(tmp_path: Path) -> None:
    first, second = g.write_parts(tmp_path / "a", "m", 2)
    copied, _ = g.write_parts(tmp_path / "b", "n", 2)
    assert read(first).content_id == read(copied).content_id
    second.write_bytes(g.part(2, 2, b"other weights, but of equal size"))
    assert read(first).content_id != read(copied).content_id


def test_of_a_huge_file_only_the_head_and_samples_are_read(path: Path) -> None:
    """50 GB of weights with a hole instead of data: other weights in a sampled block have another id."""
    size = 50 * 10**9
    g.write(path, g.whole([_LLAMA], [g.tensor("token_embd.weight", 2**20, size // 2**22)], 0))
    os.truncate(path, path.stat().st_size + size)
    started = time.process_time()
    before = read(path)
    assert time.process_time() - started < 0.2
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"weights!")
    assert read(path).content_id != before.content_id


def test_a_headers_claims_cost_little(path: Path) -> None:
    """A hole of 10 GB reads as lists of empty texts without end, or as a text that fills the memory."""
    for claim in (
        g.header([g.array("k", GGUFValueType.STRING, 3_999_999)], []),
        g.header(
            [g.array("k", GGUFValueType.STRING, 1024, g.text("x") * 1023 + struct.pack("<Q", 2**33))], []
        ),
        g.header([g.pair("k", GGUFValueType.STRING, struct.pack("<Q", 2**33))], []),
        g.header([g.array("k", GGUFValueType.UINT8, 2**33)], []),
    ):
        g.write(path, claim)
        os.truncate(path, 10 * 10**9)
        started = time.process_time()
        with pytest.raises(GGUFError):
            read(path)
        assert time.process_time() - started < 5


def test_what_takes_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "device.gguf").symlink_to("/dev/zero")
    (tmp_path / "circle.gguf").symlink_to("circle.gguf")
    for name in ("pipe.gguf", "device.gguf", "circle.gguf"):
        with pytest.raises(UnreadableError, match="can't be read"):
            read(tmp_path / name)


def test_a_file_that_is_closed_to_us_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    path = g.write(tmp_path / "closed.gguf", g.small_model())
    path.chmod(0)
    before = os.geteuid()
    if before == 0:
        # The superuser may read everything.
        os.seteuid(65_534)
    try:
        with pytest.raises(UnreadableError, match="Permission denied"):
            read(path)
    finally:
        os.seteuid(before)


def test_a_folder_in_place_of_a_file_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="can't be read"):
        read(tmp_path)


_VALID = g.small_model(
    g.array("tokenizer.ggml.tokens", GGUFValueType.STRING, 3, g.text("a") * 3),
    g.array("llama.list", GGUFValueType.FLOAT64, 2, bytes(16)),
)


@settings(
    max_examples=200,
    deadline=1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
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
