import fcntl
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from structlog.testing import capture_logs

from accounts.models import User
from llamaproj import env
from llamaproj.errors import Conflict
from models_admin import actions, fragments
from models_admin.files import catalog, folder_contents
from models_admin.files.catalog import Scan
from models_admin.models import ModelFile, Node, ServedModel
from tests.models_admin import gguf_files as g

pytestmark = pytest.mark.django_db


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(env, "MODELS_DIRS", [folder, tmp_path / "absent"])
    return folder


def row(path: Path) -> ModelFile:
    return ModelFile.objects.get(path=str(path))


def serve(path: Path) -> ServedModel:
    slug = f"m{ServedModel.objects.count()}"
    return ServedModel.objects.create(slug=slug, name=path.stem, file=row(path))


def test_files_become_rows_with_what_they_say(node: Node, folder: Path) -> None:
    g.write(folder / "team" / "tiny.gguf", g.small_model())
    assert catalog.scan(node) == Scan(good=1, read=1)
    row = ModelFile.objects.get()
    assert (row.name, row.architecture, row.parameters, row.quantization) == ("Tiny", "llama", 64, "F32")
    assert (row.context_tokens, row.error, row.node) == (512, "", node)
    assert len(row.content_id) == 64
    info = catalog.info_of(row)
    assert info is not None
    assert (info.tensor_bytes, info.content_id) == (256, row.content_id)


def test_scanning_twice_changes_nothing(node: Node, folder: Path) -> None:
    g.write(folder / "tiny.gguf", g.small_model())
    g.write(folder / "broken.gguf", b"no model")
    catalog.scan(node)
    before = list(ModelFile.objects.values())
    assert catalog.scan(node) == Scan(good=1, broken=1, read=0)
    assert list(ModelFile.objects.values()) == before


def test_several_folders_are_one_catalog_and_overlaps_count_once(
    node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g.write(folder / "sub" / "a.gguf", g.small_model())
    g.write(folder.parent / "second" / "b.gguf", g.small_model())
    folders = [folder, folder / "sub", folder.parent / "second"]
    monkeypatch.setattr(env, "MODELS_DIRS", folders)
    assert catalog.scan(node) == Scan(good=2, read=2)


def test_broken_files_stay_with_the_reason(node: Node, folder: Path) -> None:
    g.write(folder / "a.gguf", b"no model")
    g.write(folder / "b.bin", b"older")
    g.write(folder / "c.gguf", g.small_model(g.word("x", b"\0\xff")))
    g.write(folder / "notes.txt", b"no model at all")
    assert catalog.scan(node) == Scan(good=1, broken=2, read=3)
    errors = dict(ModelFile.objects.values_list("path", "error"))
    assert "GGUF" in errors[str(folder / "a.gguf")]
    assert "older format" in errors[str(folder / "b.bin")]
    assert all(catalog.info_of(row) is None for row in ModelFile.objects.exclude(error=""))
    assert [row.path for row in ModelFile.objects.servable()] == [str(folder / "c.gguf")]


def test_a_repaired_file_is_read_again(node: Node, folder: Path) -> None:
    path = g.write(folder / "a.gguf", b"no model")
    catalog.scan(node)
    g.write(path, g.small_model())
    catalog.scan(node)
    repaired = ModelFile.objects.get()
    assert repaired.error == ""
    # A download that has come to its end isn't a change of anything anybody used.
    assert repaired.changed_at is None


def test_a_closed_file_is_tried_again_at_every_scan(
    node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = g.write(folder / "a.gguf", g.small_model())
    catalog.scan(node)
    known = row(path).content_id
    os.utime(path)
    with monkeypatch.context() as closed:
        closed.setattr("models_admin.files.gguf_source.os.open", _refuse)
        assert catalog.scan(node).broken == 1
        assert "Permission denied" in row(path).error
        # It may be in order: what else has its content is found by it.
        assert row(path).content_id == known
    assert catalog.scan(node) == Scan(good=1, read=1)
    assert row(path).error == ""


def _refuse(*_: object) -> int:
    raise PermissionError(13, "Permission denied")


def test_a_file_that_is_gone_is_forgotten_unless_it_is_served(node: Node, folder: Path) -> None:
    kept = g.write(folder / "kept.gguf", g.small_model())
    lost = g.write(folder / "lost.gguf", g.small_model(g.word("general.name", "Lost")))
    catalog.scan(node)
    before = serve(kept).file
    kept.unlink()
    lost.unlink()
    assert catalog.scan(node) == Scan(missing=1)
    assert ModelFile.objects.get().missing
    assert "isn't there" in ModelFile.objects.get().obstacle
    g.write(kept, g.small_model())
    catalog.scan(node)
    assert ModelFile.objects.get() == before
    assert not ModelFile.objects.get().missing
    assert ModelFile.objects.get().changed_at is None


def test_a_missing_file_that_is_served_no_more_is_forgotten(node: Node, folder: Path) -> None:
    path = g.write(folder / "a.gguf", g.small_model())
    catalog.scan(node)
    served = serve(path)
    path.unlink()
    catalog.scan(node)
    served.delete()
    catalog.scan(node)
    assert not ModelFile.objects.exists()


def test_other_content_under_a_known_path_is_a_change(node: Node, folder: Path) -> None:
    path = g.write(folder / "a.gguf", g.small_model())
    catalog.scan(node)
    served = serve(path)
    g.write(path, g.small_model(g.word("general.name", "Other")))
    assert catalog.scan(node) == Scan(good=1, changed=1, read=1)
    changed = row(path)
    assert (changed.name, served.file) == ("Other", changed)
    assert changed.changed_at is not None
    os.utime(path)
    assert catalog.scan(node) == Scan(good=1, read=1)
    assert row(path).changed_at == changed.changed_at


def test_equal_size_and_time_do_not_hide_a_change(node: Node, folder: Path) -> None:
    path = g.write(folder / "a.gguf", g.small_model())
    catalog.scan(node)
    before = path.stat()
    g.write(path, g.small_model(data=b"x" * 256))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert catalog.scan(node).changed == 1


@pytest.mark.parametrize("target", ["renamed.gguf", "deep/er/a.gguf"])
def test_a_moved_file_keeps_its_served_models(node: Node, folder: Path, target: str) -> None:
    path = g.write(folder / "a.gguf", g.small_model())
    catalog.scan(node)
    served = serve(path)
    (folder / target).parent.mkdir(parents=True, exist_ok=True)
    path.rename(folder / target)
    assert catalog.scan(node) == Scan(good=1, moved=1, read=1)
    served.refresh_from_db()
    assert served.file is not None
    assert (served.file.path, served.file.missing) == (str(folder / target), False)
    assert served.file.changed_at is None


def test_files_that_change_places_follow_their_names(node: Node, folder: Path) -> None:
    """Both paths are known and both have other content: that is a change of both, no move."""
    one = g.write(folder / "a.gguf", g.small_model(g.word("general.name", "One")))
    two = g.write(folder / "b.gguf", g.small_model(g.word("general.name", "Two")))
    catalog.scan(node)
    one.rename(folder / "c")
    two.rename(one)
    (folder / "c").rename(two)
    assert catalog.scan(node) == Scan(good=2, changed=2, read=2)
    assert row(one).name == "Two"


def test_a_served_file_that_is_gone_is_found_in_a_copy_known_before(node: Node, folder: Path) -> None:
    """So ends a move across file systems: for a while both are there."""
    path = g.write(folder / "a.gguf", g.small_model())
    catalog.scan(node)
    served = serve(path)
    copy = g.write(folder / "b.gguf", g.small_model())
    catalog.scan(node)
    assert ModelFile.objects.count() == 2
    path.unlink()
    assert catalog.scan(node) == Scan(good=1, moved=1)
    assert ModelFile.objects.get() == served.file
    assert row(copy) == served.file


def test_a_copy_that_is_served_itself_is_not_taken(node: Node, folder: Path) -> None:
    paths = [g.write(folder / name, g.small_model()) for name in ("a.gguf", "b.gguf")]
    catalog.scan(node)
    for path in paths:
        serve(path)
    paths[0].unlink()
    assert catalog.scan(node) == Scan(good=1, missing=1)
    assert [file.missing for file in ModelFile.objects.all()] == [True, False]


def test_of_two_vanished_rows_the_served_one_moves(node: Node, folder: Path) -> None:
    paths = [g.write(folder / name, g.small_model()) for name in ("a.gguf", "b.gguf")]
    catalog.scan(node)
    served = serve(paths[1])
    paths[0].unlink()
    paths[1].rename(folder / "c.gguf")
    catalog.scan(node)
    assert ModelFile.objects.get() == served.file


def test_a_split_model_is_one_row(node: Node, folder: Path) -> None:
    first, *others = g.write_parts(folder, "big", 3)
    assert catalog.scan(node) == Scan(good=1, read=1)
    row = ModelFile.objects.get()
    assert row.path == str(first)
    assert row.size_bytes == sum(path.stat().st_size for path in (first, *others))
    assert (row.metadata["parts"], row.parameters) == (3, 24)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_missing_part_is_named_and_welcomed_back(node: Node, folder: Path, lost: int) -> None:
    parts = g.write_parts(folder, "big", 3)
    catalog.scan(node)
    before = ModelFile.objects.get()
    serve(parts[0])
    parts[lost].rename(folder / "aside")
    assert catalog.scan(node).broken == 1
    broken = ModelFile.objects.get()
    assert broken == before
    assert parts[lost].name in broken.error
    assert catalog.scan(node).read == 0
    (folder / "aside").rename(parts[lost])
    catalog.scan(node)
    assert ModelFile.objects.get().error == ""
    assert ModelFile.objects.get().changed_at is None


def test_a_split_model_moves_as_one(node: Node, folder: Path) -> None:
    parts = g.write_parts(folder, "big", 2)
    catalog.scan(node)
    served = serve(parts[0])
    for path in parts:
        path.rename(folder / path.name.replace("big", "large"))
    assert catalog.scan(node) == Scan(good=1, moved=1, read=1)
    assert ModelFile.objects.get() == served.file


def test_a_change_in_any_part_is_a_change(node: Node, folder: Path) -> None:
    parts = g.write_parts(folder, "big", 2)
    catalog.scan(node)
    parts[1].write_bytes(g.part(2, 2, b"x" * 32))
    assert catalog.scan(node).changed == 1


def test_a_projector_belongs_to_the_models_beside_it(node: Node, folder: Path) -> None:
    models = [g.write(folder / "see" / f"tiny-{kind}.gguf", g.small_model()) for kind in ("Q4_K_M", "Q8_0")]
    elsewhere = g.write(folder / "tiny.gguf", g.small_model())
    projector = g.write(folder / "see" / "mmproj-F16.gguf", g.projector())
    assert catalog.scan(node) == Scan(good=4, read=4)
    assert row(projector).kind == ModelFile.Kind.PROJECTOR
    assert [row(path).projector for path in models] == [row(projector)] * 2
    assert row(elsewhere).projector is None
    assert row(projector) not in ModelFile.objects.servable()
    assert "projector" in row(projector).obstacle
    projector.unlink()
    catalog.scan(node)
    assert [row(path).projector for path in models] == [None] * 2


def test_adapters_and_broken_projectors_are_known_as_such(node: Node, folder: Path) -> None:
    adapter = g.write(folder / "style.gguf", g.adapter())
    broken = g.write(folder / "mmproj-x.gguf", b"no")
    catalog.scan(node)
    assert row(adapter).kind == ModelFile.Kind.ADAPTER
    assert "adapter" in row(adapter).obstacle
    assert (row(broken).kind, bool(row(broken).error)) == (ModelFile.Kind.PROJECTOR, True)
    with pytest.raises(Conflict, match="an addition to a model"):
        actions.add(row(adapter), by=None)


def test_pipes_circles_and_strange_names_are_passed_over(node: Node, folder: Path) -> None:
    os.mkfifo(folder / "pipe.gguf")
    (folder / "circle").symlink_to(folder)
    (folder / "dangling.gguf").symlink_to("nowhere")
    (folder / "self.gguf").symlink_to("self.gguf")
    (folder / "zero.gguf").symlink_to("/dev/zero")
    (folder / "folder.gguf").mkdir()
    g.write(folder / "folder.gguf" / "inside.gguf", g.small_model())
    g.write(folder / "real.gguf", g.small_model())
    (folder / "link.gguf").symlink_to("real.gguf")
    g.write(folder / os.fsdecode(b"\xff.gguf"), g.small_model())
    g.write(folder / ".cache" / "growing.gguf", g.small_model())
    assert catalog.scan(node) == Scan(good=3, read=3)


def test_a_files_strange_time_is_no_obstacle(node: Node, folder: Path) -> None:
    for second in (-(2**33), 2**33):
        path = g.write(folder / f"{second}.gguf", g.small_model())
        os.utime(path, (second, second))
    assert catalog.scan(node).good == 2


def test_other_nodes_files_are_left_alone(node: Node, folder: Path) -> None:
    other = Node.objects.create(name="other")
    ModelFile.objects.create(node=other, path="/x.gguf", size_bytes=1, modified_at="2026-01-01T00:00:00Z")
    catalog.scan(node)
    assert ModelFile.objects.get().node == other


def test_an_older_readers_rows_are_read_again(node: Node, folder: Path) -> None:
    path = g.write(folder / "a.gguf", g.small_model())
    catalog.scan(node)
    ModelFile.objects.update(content_id="", metadata={"bytes": 1})
    assert catalog.scan(node).read == 1
    assert row(path).content_id
    assert row(path).changed_at is None


def test_whatever_happens_in_the_folders_is_noticed_without_asking_the_database(
    node: Node, folder: Path
) -> None:
    assert catalog.changed_since_last_scan(node)
    catalog.scan(node)
    path = folder / "a.gguf"
    for act in (
        lambda: g.write(path, g.small_model()),
        lambda: g.write(path, b"other"),
        lambda: path.chmod(0o600),
        lambda: path.rename(folder / "b.gguf"),
        lambda: (folder / "b.gguf").unlink(),
    ):
        assert not catalog.changed_since_last_scan(node)
        act()
        with CaptureQueriesContext(connection) as queries:
            assert catalog.changed_since_last_scan(node)
        assert len(queries) == 0
        catalog.scan(node)
    g.write(folder / "notes.txt", b"nothing of ours")
    assert not catalog.changed_since_last_scan(node)


def test_while_a_scan_runs_nobody_asks_for_another(node: Node, folder: Path) -> None:
    catalog.scan(node)
    g.write(folder / "a.gguf", g.small_model())
    with (env.DATA_DIR / "run" / f"scan-{node.pk}").open() as record:
        fcntl.flock(record, fcntl.LOCK_EX)
        assert not catalog.changed_since_last_scan(node)
    assert catalog.changed_since_last_scan(node)


def test_who_serves_a_file_while_a_scan_finds_it_gone_keeps_it(
    node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = g.write(folder / "a.gguf", g.small_model())
    catalog.scan(node)
    path.unlink()
    monkeypatch.setattr(catalog._Pass, "_merge_copies", lambda _: serve(path))
    assert catalog.scan(node) == Scan(missing=1)
    assert row(path).missing


def test_a_scan_that_failed_is_done_again(node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g.write(folder / "a.gguf", g.small_model())
    with monkeypatch.context() as failing:
        failing.setattr(catalog, "_pair", _refuse)
        with pytest.raises(PermissionError):
            catalog.scan(node)
    assert catalog.changed_since_last_scan(node)
    assert catalog.scan(node).good == 1
    assert not catalog.changed_since_last_scan(node)


@pytest.mark.django_db(transaction=True)
def test_two_scans_at_once_are_one_after_the_other(node: Node, folder: Path) -> None:
    for number in range(20):
        g.write(folder / f"{number}.gguf", g.small_model(g.word("general.name", f"Model {number}")))
    start = threading.Barrier(3)

    def scan() -> Scan:
        start.wait(10)
        try:
            return catalog.scan(node)
        finally:
            connection.close()

    with ThreadPoolExecutor(3) as pool:
        scans = [future.result() for future in [pool.submit(scan) for _ in range(3)]]
    assert sorted(one.read for one in scans) == [0, 0, 20]
    assert ModelFile.objects.count() == 20


def test_more_files_than_are_read_are_told_of_and_harm_nothing(
    node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        g.write(folder / f"{number}.gguf", g.small_model())
    monkeypatch.setattr(folder_contents, "_MAX_FILES", 3)
    with capture_logs() as logs:
        assert catalog.scan(node) == Scan(good=3, read=3)
    assert [entry["event"] for entry in logs] == ["the model folders hold more than is read"]
    assert not catalog.changed_since_last_scan(node)


def test_a_thousand_unchanged_files_are_not_read_again(node: Node, folder: Path) -> None:
    for number in range(1000):
        path = folder / f"{number % 20}" / f"{number}.gguf"
        g.write(path, g.small_model(g.word("general.name", f"Model {number}")))
    assert catalog.scan(node) == Scan(good=1000, read=1000)
    started = time.perf_counter()
    with CaptureQueriesContext(connection) as queries:
        assert catalog.scan(node) == Scan(good=1000, read=0)
    again = time.perf_counter()
    assert not catalog.changed_since_last_scan(node)
    looked = time.perf_counter()
    print(f"again {(again - started) * 1000:.0f} ms, a look {(looked - again) * 1000:.1f} ms")
    assert len(queries) < 12
    assert again - started < 5


def test_the_table_says_what_each_file_is_and_who_uses_it(
    node: Node, folder: Path, client: Client, admin_user: User
) -> None:
    used = g.write(folder / "see" / "tiny.gguf", g.small_model())
    g.write(folder / "see" / "mmproj-F16.gguf", g.projector())
    g.write(folder / "style.gguf", g.adapter())
    g.write(folder / "old.bin", b"older")
    g.write_parts(folder, "big", 3)
    parts = g.write_parts(folder, "torn", 2)
    gone = g.write(folder / "gone.gguf", g.small_model(g.word("general.name", "Gone")))
    catalog.scan(node)
    for path in (used, gone):
        serve(path)
    parts[1].unlink()
    gone.unlink()
    g.write(used, g.small_model(g.word("general.name", "Other")))
    catalog.scan(node)
    client.force_login(admin_user)
    rows = _rows(client.get("/models/").content.decode())
    assert "with the projector mmproj-F16.gguf" in rows["tiny.gguf"]
    assert '<a href="/models/m0/">m0</a>' in rows["tiny.gguf"]
    assert "Changed" in rows["tiny.gguf"]
    assert "For tiny.gguf" in rows["mmproj-F16.gguf"]
    assert "LoRA adapter" in rows["style.gguf"]
    assert "older format" in rows["old.bin"]
    assert "3 parts" in rows["big-00001-of-00003.gguf"]
    assert "torn-00002-of-00002.gguf" in rows["torn-00001-of-00002.gguf"]
    assert "any more" in rows["gone.gguf"]
    addable = {name for name, row in rows.items() if "/models/add/" in row}
    assert addable == {"tiny.gguf", "big-00001-of-00003.gguf"}


def test_the_table_reads_no_headers_and_asks_as_often_for_many_files_as_for_one(
    node: Node, folder: Path, admin_user: User
) -> None:
    asked = []
    for name in ("a.gguf", "b.gguf", "mmproj-c.gguf"):
        g.write(
            folder / name, g.projector() if "mmproj" in name else g.small_model(g.word("general.name", name))
        )
        catalog.scan(node)
        with CaptureQueriesContext(connection) as queries:
            fragments.files(admin_user)
        asked.append(len(queries))
        assert not any('modelfile"."chat_template"' in query["sql"] for query in queries)
    assert max(asked) <= 7


def test_the_table_says_how_many_files_it_leaves_out(
    node: Node, folder: Path, admin_user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        g.write(folder / f"{number}.gguf", g.small_model())
    catalog.scan(node)
    assert "admin site" not in fragments.files(admin_user)
    monkeypatch.setattr(fragments, "_CHOICES", 2)
    assert "1 more is listed" in fragments.files(admin_user)


def test_without_files_the_table_says_what_to_do(
    node: Node, folder: Path, client: Client, admin_user: User
) -> None:
    client.force_login(admin_user)
    page = client.get("/models/").content.decode()
    assert f"Put a GGUF file into <code>{folder}</code>" in page


def _rows(page: str) -> dict[str, str]:
    """The rows of the files' table by the names of the files."""
    table = page.partition('id="model-files"')[2]
    rows = table.split("<tr data-file=")[1:]
    return {re.search(r'file-path">([^<]*)', row)[1].rpartition("/")[2]: row for row in rows}
