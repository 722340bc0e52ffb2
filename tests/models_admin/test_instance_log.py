import pytest

from models_admin.engine import instance_log

ID = "00000000-0000-0000-0000-0000000000aa"


@pytest.fixture(autouse=True)
def no_files() -> None:
    instance_log.remove(ID)


def write(data: bytes) -> None:
    with instance_log.opened(ID, headline="llama-server --model x") as file:
        file.write(data)


def test_the_tail_is_whole_lines_and_bounded() -> None:
    assert instance_log.tail(ID) == []
    write(b"first\n" + b"x" * 100 + b"\n" + b"last \xff\0\n")
    headline, *lines = instance_log.tail(ID)
    assert headline.endswith("UTC: llama-server --model x")
    assert lines == ["first", "x" * 100, "last \N{REPLACEMENT CHARACTER}"]
    write(b"".join(b"%06d\n" % number for number in range(50_000)))
    tail = instance_log.tail(ID)
    assert len(tail) == instance_log.TAIL_LINES
    assert tail[-1] == "049999"
    assert instance_log.tail(ID, 3) == ["049997", "049998", "049999"]


def test_the_tail_goes_on_into_the_file_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_log, "_MAX_BYTES", 100)
    write(b"early\n" * 30)
    instance_log.trim(ID)
    write(b"late\n")
    assert instance_log.tail(ID)[-1] == "late"
    assert instance_log.tail(ID)[0] == "early"
    assert b"".join(instance_log.whole(ID)).endswith(b"late\n")
    instance_log.remove(ID)
    assert b"".join(instance_log.whole(ID)) == b""


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("0.00.303.022 E llama_init_from_model: failed", "error"),
        ("12.00.001.822 W srv          init: security", "warning"),
        ("0.00.000.246 I srv          init: initializing ...", ""),
        ("error: Failed to init server", "error"),
        ("warning: no usable GPU found", "warning"),
        ("errors are rare", ""),
        ("--- 2026-11-21 13:00:00 UTC: llama-server", ""),
    ],
)
def test_a_line_tells_its_level(line: str, level: str) -> None:
    assert instance_log.level_of(line) == level
