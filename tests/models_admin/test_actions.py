from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts.models import AuditEntry, Team, User
from llamaproj import env
from llamaproj.errors import Conflict, InvalidInput, NotFound
from models_admin import actions, events, tasks
from models_admin.engine import launch_config
from models_admin.errors import IllegalMove, StillRunning
from models_admin.memory import footprint
from models_admin.models import Instance, ModelFile, Node, ServedModel
from models_admin.states import InstanceState as S

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(tasks, "wake", names.append)
    return names


def test_start_wants_a_replica_tells_the_node_and_is_written_down(
    served: ServedModel, admin: User, woken: list[str], django_capture_on_commit_callbacks
) -> None:
    Node.objects.update(last_seen=timezone.now())
    with django_capture_on_commit_callbacks(execute=True):
        actions.start(served, by=admin)
        actions.start(served, by=admin)
    served.refresh_from_db()
    assert served.desired_replicas == 1
    assert woken == [env.NODE_NAME]
    entry = AuditEntry.objects.get()
    assert (entry.by, entry.verb, entry.target) == (admin, "model.start", "fake-model")


def test_start_keeps_a_larger_wish_and_tries_failed_replicas_again(
    served: ServedModel, node: Node, admin: User
) -> None:
    ServedModel.objects.update(desired_replicas=3)
    failed = Instance.objects.create(served=served, node=node, state=S.FAILED, crashes=5)
    actions.start(served, by=admin)
    failed.refresh_from_db()
    served.refresh_from_db()
    assert (failed.state, failed.crashes, served.desired_replicas) == (S.PENDING, 0, 3)


def test_start_refuses_a_broken_file(served: ServedModel, admin: User) -> None:
    ModelFile.objects.update(error="It is broken.")
    with pytest.raises(Conflict, match="It is broken"):
        actions.start(served, by=admin)
    assert not AuditEntry.objects.exists()


def test_stop_wants_none(served: ServedModel, admin: User) -> None:
    ServedModel.objects.update(desired_replicas=2)
    actions.stop(served, by=admin)
    actions.stop(served, by=admin)
    served.refresh_from_db()
    assert served.desired_replicas == 0
    assert AuditEntry.objects.count() == 1


def test_restart_makes_what_runs_outdated(served: ServedModel, node: Node, admin: User) -> None:
    now = launch_config.of(served).snapshot()
    running = Instance.objects.create(served=served, node=node, state=S.READY, launched=now)
    actions.restart(served, by=admin)
    running.refresh_from_db()
    assert running.state == S.READY
    assert running.launched != now


def test_restart_twice_is_restart_once(served: ServedModel, node: Node, admin: User) -> None:
    now = launch_config.of(served).snapshot()
    old = Instance.objects.create(served=served, node=node, state=S.READY, launched=now)
    actions.restart(served, by=admin)
    fresh = Instance.objects.create(served=served, node=node, state=S.STARTING, launched=now)
    actions.restart(served, by=admin)
    old.move_to(S.DRAINING, "")
    actions.restart(served, by=admin)
    fresh.refresh_from_db()
    assert fresh.launched == now
    assert AuditEntry.objects.count() == 1

    fresh.move_to(S.READY, "")
    actions.restart(served, by=admin)
    fresh.refresh_from_db()
    assert fresh.launched != now


@pytest.mark.parametrize(("replicas", "most"), [(-1, None), (17, None), (2, 1), (0, 0), (1, 17)])
def test_a_scale_that_makes_no_sense_is_refused(
    served: ServedModel, admin: User, replicas: int, most: int | None
) -> None:
    with pytest.raises(InvalidInput):
        actions.scale(served, by=admin, replicas=replicas, most=most)


def test_scale_sets_the_bounds_and_zero_means_on_demand(served: ServedModel, admin: User) -> None:
    actions.scale(served, by=admin, replicas=2, most=3)
    served.refresh_from_db()
    assert (served.enabled, served.desired_replicas, served.min_replicas, served.max_replicas) == (
        True,
        2,
        2,
        3,
    )
    actions.scale(served, by=admin, replicas=0)
    served.refresh_from_db()
    assert (served.enabled, served.desired_replicas, served.on_demand) == (True, 0, True)


def test_a_file_is_served_under_a_name_of_its_own(served: ServedModel, admin: User) -> None:
    team = Team.objects.create(name="Team")
    ModelFile.objects.update(path="/m/Big.Model-7B.Q4.gguf", name="Big Model", context_tokens=2048)
    file = ModelFile.objects.get()
    added = actions.add(file, by=admin, teams=[team])
    assert (added.slug, added.name, added.context_tokens) == ("big-model-7b-q4", "Big Model", 2048)
    assert list(added.teams.all()) == [team]
    assert actions.suggest(file)["slug"] == "big-model-7b-q4-2"
    with pytest.raises(Conflict, match="already"):
        actions.add(file, by=admin, slug="big-model-7b-q4")
    with pytest.raises(InvalidInput, match="isn't allowed"):
        actions.add(file, by=admin, extra_flags=["--tools", "all"])


def test_a_change_writes_down_which_fields(served: ServedModel, admin: User) -> None:
    actions.change(served, by=admin, slots=8, name=served.name)
    assert AuditEntry.objects.get().detail == {"fields": ["slots"]}
    actions.change(served, by=admin, slots=8)
    assert AuditEntry.objects.count() == 1


def test_what_somebody_stopped_meanwhile_stays_stopped(served: ServedModel, admin: User) -> None:
    ServedModel.objects.update(enabled=True, desired_replicas=1)
    read_before = ServedModel.objects.get()
    actions.stop(served, by=admin)
    changed = actions.change(read_before, by=admin, min_replicas=2, max_replicas=2)
    served.refresh_from_db()
    assert (served.enabled, served.desired_replicas, served.min_replicas) == (False, 0, 2)
    assert changed.enabled is False


def test_what_somebody_removed_meanwhile_is_not_there(served: ServedModel, admin: User) -> None:
    ServedModel.objects.all().delete()
    for verb in (actions.start, actions.stop, actions.restart, actions.remove, actions.change):
        with pytest.raises(NotFound, match="just removed Fake"):
            verb(served, by=admin)


def test_only_what_does_not_run_is_removed(served: ServedModel, node: Node, admin: User) -> None:
    running = Instance.objects.create(served=served, node=node, state=S.READY)
    with pytest.raises(StillRunning, match="stop it first"):
        actions.remove(served, by=admin)
    running.delete()
    actions.remove(served, by=admin)
    assert not ServedModel.objects.exists()
    assert ModelFile.objects.exists()


@pytest.fixture
def demo(node: Node, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / demo_model.name).symlink_to(demo_model)
    monkeypatch.setattr(env, "MODELS_DIRS", [folder])
    return folder


def test_the_demo_model_is_installed_once(demo: Path) -> None:
    call_command("models", "install-demo", verbosity=0)
    served = ServedModel.objects.get()
    assert (served.slug, served.name, served.desired_replicas) == (
        actions.DEMO_SLUG,
        "SmolLM2 135M Instruct",
        1,
    )
    assert (served.context_tokens, served.slots) == (4096, 4)


def test_what_people_made_of_the_demo_model_is_theirs(demo: Path) -> None:
    call_command("models", "install-demo", verbosity=0)
    ServedModel.objects.update(desired_replicas=0, slots=1, name="Ours")
    call_command("models", "install-demo", verbosity=0)
    served = ServedModel.objects.get()
    assert (served.desired_replicas, served.slots, served.name) == (0, 1, "Ours")


def test_the_demo_model_follows_a_machine_that_got_another_name(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "NODE_NAME", "old-name")
    call_command("models", "install-demo", verbosity=0)
    Node.objects.filter(name="old-name").update(last_seen="2026-01-01T00:00:00Z")
    monkeypatch.setattr(env, "NODE_NAME", "new-name")
    call_command("models", "install-demo", verbosity=0)
    assert ServedModel.objects.get().file.node.name == "new-name"


def test_no_demo_model_without_its_file(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "MODELS_DIRS", [tmp_path])
    call_command("models", "install-demo", verbosity=0)
    assert not ServedModel.objects.exists()


def test_the_command_lists_starts_and_stops(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("models", "install-demo")
    call_command("models", "stop", actions.DEMO_SLUG)
    assert ServedModel.objects.get().desired_replicas == 0
    call_command("models", "start", actions.DEMO_SLUG)
    assert ServedModel.objects.get().desired_replicas == 1
    call_command("models", "scan")
    call_command("models", "list")
    said = capsys.readouterr().out
    assert "1 models, 0 broken" in said
    assert actions.DEMO_SLUG in said
    with pytest.raises(CommandError, match="no model 'nonsense'"):
        call_command("models", "start", "nonsense")


def test_only_the_first_of_two_workers_moves_it(served: ServedModel, node: Node) -> None:
    instance = Instance.objects.create(served=served, node=node)
    other = Instance.objects.get()
    assert instance.move_to(S.STARTING)
    assert not other.move_to(S.STOPPED)
    assert Instance.objects.get().state == S.STARTING
    assert instance.changes.count() == 1


def test_no_state_is_jumped_to(served: ServedModel, node: Node) -> None:
    with pytest.raises(IllegalMove):
        Instance.objects.create(served=served, node=node).move_to(S.READY)


def test_an_announcement_without_valkey_is_lost_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        async def group_send(self, *_: object) -> None:
            raise ConnectionError("away")

    monkeypatch.setattr(events, "get_channel_layer", Away)
    events.served_changed(1)


def test_the_memory_of_a_model_counts_its_slots(demo: Path) -> None:
    call_command("models", "install-demo", verbosity=0)
    served = ServedModel.objects.get()
    four = footprint.needed(served)
    served.slots = 8
    eight = footprint.needed(served)
    assert four is not None
    assert eight is not None
    assert eight.ram_bytes - four.ram_bytes == pytest.approx(360 * 2**20, rel=0.01)
