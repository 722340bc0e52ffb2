import os
from pathlib import Path

import pytest

from llamaproj import env
from models_admin import catalog
from models_admin.catalog import Scan
from models_admin.models import ModelFile, Node, ServedModel
from tests.models_admin import gguf_files as g

pytestmark = pytest.mark.django_db


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(env, "MODELS_DIRS", [folder, tmp_path / "absent"])
    return folder


def test_files_become_rows_with_what_they_say(node: Node, folder: Path) -> None:
    g.write(folder / "team" / "tiny.gguf", g.small_model())
    assert catalog.scan(node) == Scan(good=1, broken=0, missing=0)
    row = ModelFile.objects.get()
    assert (row.name, row.architecture, row.parameters, row.quantization) == ("Tiny", "llama", 64, "F32")
    assert (row.context_tokens, row.error, row.node) == (512, "", node)
    info = catalog.info_of(row)
    assert info is not None
    assert info.tensor_bytes == 256


def test_scanning_twice_changes_nothing(node: Node, folder: Path) -> None:
    g.write(folder / "tiny.gguf", g.small_model())
    catalog.scan(node)
    before = ModelFile.objects.values().get()
    catalog.scan(node)
    assert ModelFile.objects.values().get() == before


def test_broken_files_stay_with_the_reason(node: Node, folder: Path) -> None:
    g.write(folder / "a.gguf", b"no model")
    g.write(folder / "b.bin", b"older")
    g.write(folder / "c.gguf", g.small_model(g.word("x", b"\0\xff")))
    g.write(folder / "notes.txt", b"no model at all")
    assert catalog.scan(node) == Scan(good=1, broken=2, missing=0)
    errors = dict(ModelFile.objects.values_list("path", "error"))
    assert "GGUF" in errors[str(folder / "a.gguf")]
    assert "older format" in errors[str(folder / "b.bin")]
    assert all(catalog.info_of(row) is None for row in ModelFile.objects.exclude(error=""))


def test_a_repaired_file_is_read_again(node: Node, folder: Path) -> None:
    path = g.write(folder / "a.gguf", b"no model")
    catalog.scan(node)
    g.write(path, g.small_model())
    catalog.scan(node)
    assert ModelFile.objects.get().error == ""


def test_a_file_that_is_gone_is_forgotten_unless_it_is_served(node: Node, folder: Path) -> None:
    kept, lost = (
        g.write(folder / "kept.gguf", g.small_model()),
        g.write(folder / "lost.gguf", g.small_model()),
    )
    catalog.scan(node)
    ServedModel.objects.create(slug="kept", name="Kept", file=ModelFile.objects.get(path=str(kept)))
    kept.unlink()
    lost.unlink()
    assert catalog.scan(node) == Scan(good=0, broken=0, missing=1)
    assert ModelFile.objects.get().missing
    g.write(kept, g.small_model())
    catalog.scan(node)
    assert not ModelFile.objects.get().missing


def test_pipes_circles_and_strange_names_are_passed_over(node: Node, folder: Path) -> None:
    os.mkfifo(folder / "pipe.gguf")
    (folder / "circle").symlink_to(folder)
    (folder / "dangling.gguf").symlink_to("nowhere")
    g.write(folder / "real.gguf", g.small_model())
    (folder / "link.gguf").symlink_to("real.gguf")
    g.write(folder / os.fsdecode(b"\xff.gguf"), g.small_model())
    assert catalog.scan(node) == Scan(good=2, broken=0, missing=0)


def test_other_nodes_files_are_left_alone(node: Node, folder: Path) -> None:
    other = Node.objects.create(name="other")
    ModelFile.objects.create(node=other, path="/x.gguf", size_bytes=1, modified_at="2026-01-01T00:00:00Z")
    catalog.scan(node)
    assert ModelFile.objects.get().node == other
