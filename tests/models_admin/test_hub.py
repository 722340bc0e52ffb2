import json

import pytest

from llamaproj import env
from llamaproj.errors import InvalidInput
from models_admin.errors import HubRefused, HubUnreachable, NotOnHub
from models_admin.hub import hub
from tests.hub_server import HubServer

BIG = bytes(range(256)) * 8


@pytest.fixture
def server(monkeypatch):
    with HubServer() as server:
        monkeypatch.setattr(env, "HF_ENDPOINT", server.endpoint)
        yield server


def test_a_search_finds_repositories_those_most_downloaded_first(server):
    server.put("one/tiny-GGUF", "tiny-Q4_0.gguf", BIG)
    server.put("two/tiny-GGUF", "tiny-Q4_0.gguf", BIG, gated=True)
    server.put("two/other", "other.gguf", BIG)
    server.repos["two/tiny-GGUF"].downloads = 99
    found = hub.search("  tiny ")
    assert [(one.name, one.downloads, one.gated) for one in found] == [
        ("two/tiny-GGUF", 99, True),
        ("one/tiny-GGUF", 10, False),
    ]
    assert found[0].changed_at.year == 2026
    assert hub.search("nothing of the kind") == []


def test_a_repositorys_files_are_quantisations_sets_and_projectors(server):
    for path in (
        "Model-7B-Q8_0.gguf",
        "Model-7B.Q4_K_M.gguf",
        "Model-7B-UD-IQ2_XXS.gguf",
        "model.gguf",
        "BF16/Model-7B-BF16-00001-of-00002.gguf",
        "BF16/Model-7B-BF16-00002-of-00002.gguf",
        "F32/Model-7B-F32-00001-of-00003.gguf",
        "F32/Model-7B-F32-00003-of-00003.gguf",
        "mmproj-Model-7B-F32.gguf",
        "mmproj-Model-7B-F16.gguf",
        "imatrix.gguf",
        "README.md",
        "model.safetensors",
    ):
        commit = server.put("owner/Model-GGUF", path, path.encode() * 100)
    found = hub.look("owner/Model-GGUF")
    assert found.commit == commit
    assert {one.label: (one.stem, len(one.parts), one.problem) for one in found.choices} == {
        "Q8_0": ("Model-7B", 1, ""),
        "Q4_K_M": ("Model-7B", 1, ""),
        "UD-IQ2_XXS": ("Model-7B", 1, ""),
        "": ("model", 1, ""),
        "BF16": ("Model-7B", 2, ""),
        "F32": ("Model-7B", 2, "Part 2 of 3 is missing on the hub."),
    }
    assert [one.label for one in found.projectors] == ["F16", "F32"]
    sizes = [one.size_bytes for one in found.choices]
    assert sizes == sorted(sizes)
    whole = found.choice("BF16/Model-7B-BF16-00001-of-00002.gguf")
    assert [part.path[-22:] for part in whole.parts] == [
        "BF16-00001-of-00002.gguf"[-22:],
        "BF16-00002-of-00002.gguf"[-22:],
    ]
    assert all(len(part.sha256) == 64 for part in whole.parts)
    with pytest.raises(HubRefused, match="Part 2 of 3"):
        found.choice("F32/Model-7B-F32-00001-of-00003.gguf")
    with pytest.raises(NotOnHub):
        found.choice("Model-7B-Q3_K.gguf")


@pytest.mark.parametrize(
    "path",
    [
        "../evil.gguf",
        "a/../../evil.gguf",
        "/etc/evil.gguf",
        "a//evil.gguf",
        ".hidden.gguf",
        "a/.hidden/evil.gguf",
        "evil\x00.gguf",
        "evil\n.gguf",
        "evil\u202e.gguf",
        "C:\\evil.gguf",
        "evil.sh",
        "a" * 500 + ".gguf",
        " evil.gguf",
        "",
    ],
)
def test_hostile_file_names_are_not_even_listed(server, path):
    server.put("owner/name", "good-Q4_0.gguf", BIG)
    server.put("owner/name", path, BIG)
    assert not hub.is_good_path(path)
    assert [one.path for one in hub.look("owner/name").choices] == ["good-Q4_0.gguf"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "name",
        "a/b/c",
        "../..",
        "a/..",
        "/b",
        "a/",
        "a/b.git",
        "a--b/c",
        "a/b c",
        "a/b\n",
        "ü/b",
        "x" * 99 + "/y",
    ],
)
def test_what_is_no_repositorys_name_is_never_asked_for(server, name):
    with pytest.raises(InvalidInput):
        hub.look(name)
    assert not server.api_requests


def test_refusals_are_sentences(server):
    with pytest.raises(HubRefused, match="set HF_TOKEN"):
        hub.look("owner/nothing")
    server.put("owner/name", "a-Q4_0.gguf", BIG)
    with pytest.raises(NotOnHub):
        hub.look("owner/name", "0" * 40)
    for status, kind, words in (
        (403, HubRefused, "accepted its terms"),
        (429, HubUnreachable, "fewer requests"),
        (500, HubUnreachable, "trouble of its own"),
        (503, HubUnreachable, "trouble of its own"),
    ):
        server.api_status = status
        for question in (lambda: hub.look("owner/name"), lambda: hub.search("name")):
            asked = len(server.api_requests)
            with pytest.raises(kind, match=words):
                question()
            # Nobody is kept waiting by quiet repetitions.
            assert len(server.api_requests) == asked + 1


def test_an_unreachable_or_silent_hub_is_one_clear_sentence(server, monkeypatch):
    monkeypatch.setattr(hub, "_TIMEOUT_S", 0.3)
    server.api_stalls = True
    for question in (lambda: hub.look("owner/name"), lambda: hub.search("name")):
        with pytest.raises(HubUnreachable, match="can't be reached"):
            question()
    monkeypatch.setattr(env, "HF_ENDPOINT", "http://127.0.0.1:9")
    for question in (lambda: hub.look("owner/name"), lambda: hub.search("name")):
        with pytest.raises(HubUnreachable, match=r"The hub 127.0.0.1 can't be reached from here \(\w"):
            question()


def test_an_answer_that_makes_no_sense_is_said_so(server, monkeypatch):
    server.put("owner/name", "a-Q4_0.gguf", BIG)
    monkeypatch.setattr(json, "dumps", lambda data: "<html>a captive portal</html>")
    with pytest.raises(HubUnreachable, match="can't be understood"):
        hub.look("owner/name")


def test_the_token_goes_along_only_where_it_is_set(monkeypatch):
    assert "Authorization" not in hub.headers()
    monkeypatch.setattr(env, "HF_TOKEN", "hf_right")
    assert hub.headers()["Authorization"] == "Bearer hf_right"
    assert "HF_TOKEN" not in env.outside_environment()


def test_addresses_are_escaped(monkeypatch):
    monkeypatch.setattr(env, "HF_ENDPOINT", "https://hub.example")
    assert (
        hub.address("a/b", "c0ffee", "Q 4/m#1?.gguf")
        == "https://hub.example/a/b/resolve/c0ffee/Q%204/m%231%3F.gguf"
    )
