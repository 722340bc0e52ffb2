from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from django.core.cache import cache
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from models_admin import demand, scheduler
from models_admin.engine import launch_config
from models_admin.models import Instance, ModelFile, Node, PortalConfig, ServedModel
from models_admin.scheduling.world import World
from models_admin.states import InstanceState as S
from models_admin.states import Shortage
from tests.models_admin.conftest import Passes, only, state_of, want

pytestmark = pytest.mark.django_db(transaction=True)

MIB = 2**20
# What a model of MODEL_MIB needs is a little more: the process, and prompts that are kept.
MODEL_MIB = 1000


@pytest.fixture(autouse=True)
def nothing_noted() -> None:
    cache.clear()
    PortalConfig.objects.create(memory_reserve_mib=0, prompt_cache_mib=0)


def made(
    node: Node, slug: str, *, mib: int = MODEL_MIB, content_id: str | None = None, **how: object
) -> ServedModel:
    file = ModelFile.objects.create(
        node=node,
        path=f"/models/{slug}.gguf",
        size_bytes=mib * MIB,
        modified_at=timezone.now(),
        content_id=content_id if content_id is not None else uuid4().hex,
        metadata={
            "values": {},
            "tensor_bytes": mib * MIB,
            "embedding_bytes": 0,
            "tied_output": False,
            "parts": 1,
        },
    )
    usual: dict[str, object] = {"enabled": True, "min_replicas": 0, "context_tokens": 256, "slots": 1}
    return ServedModel.objects.create(slug=slug, name=slug, file=file, **usual | how)


def machine(name: str, *, mib: int = 100_000, alive: bool = True, **how: object) -> Node:
    seen = timezone.now() if alive else timezone.now() - timedelta(minutes=5)
    return Node.objects.create(
        name=name, memory_bytes=mib * MIB, memory_free_bytes=mib * MIB, last_seen=seen, **how
    )


def running(served: ServedModel, node: Node, *, idle_s: float = 100.0, **how: object) -> Instance:
    now = timezone.now()
    usual: dict[str, object] = {
        "state": S.READY,
        "ready_at": now - timedelta(seconds=1000),
        "last_used_at": now - timedelta(seconds=idle_s),
        "memory_bytes": MODEL_MIB * MIB,
        "expected_bytes": MODEL_MIB * MIB,
        "launched": launch_config.of(served).snapshot(),
    }
    instance = Instance.objects.create(served=served, node=node, **usual | how)
    ServedModel.objects.filter(pk=served.pk).update(desired_replicas=served.instances.current().count())
    return instance


def fresh(instance: Instance) -> Instance:
    instance.refresh_from_db()
    return instance


# Demand ---------------------------------------------------------------------------------------------------------------


def test_a_model_somebody_asks_for_gets_a_place() -> None:
    node = machine("one")
    served = made(node, "asked")
    scheduler.schedule("one")
    assert state_of(served) == "stopped"
    demand.ask(served.pk)
    scheduler.schedule("one")
    assert (only(served).state, only(served).node, only(served).file) == (S.PENDING, node, served.file)
    assert only(served).expected_bytes >= MODEL_MIB * MIB


def test_a_stopped_model_is_not_loaded_whoever_asks() -> None:
    served = made(machine("one"), "stopped", enabled=False)
    demand.ask(served.pk)
    scheduler.schedule("one")
    assert state_of(served) == "stopped"


def test_what_nobody_waits_for_any_more_is_not_loaded() -> None:
    served = made(machine("small", mib=10), "gone", desired_replicas=1)
    scheduler.schedule("small")
    assert state_of(served) == S.PENDING
    ServedModel.objects.update(desired_since=timezone.now() - timedelta(minutes=1))
    scheduler.schedule("small")
    assert state_of(served) == "stopped"


def test_an_idle_model_is_unloaded_after_its_timeout_and_a_pinned_one_is_not() -> None:
    node = machine("one")
    idle = running(made(node, "idle", idle_timeout_s=60), node, idle_s=61)
    used = running(made(node, "used", idle_timeout_s=60), node, idle_s=30)
    pinned = running(made(node, "pinned", idle_timeout_s=60, pinned=True), node, idle_s=10_000)
    kept = running(made(node, "kept", idle_timeout_s=60, min_replicas=1), node, idle_s=10_000)
    scheduler.schedule("one")
    scheduler.schedule("one")
    assert fresh(idle).state == S.DRAINING
    assert {fresh(one).state for one in (used, pinned, kept)} == {S.READY}


def test_the_portals_timeout_holds_for_models_without_one() -> None:
    node = machine("one")
    PortalConfig.objects.update(idle_timeout_s=50)
    idle = running(made(node, "idle"), node, idle_s=51)
    scheduler.schedule("one")
    assert fresh(idle).state == S.DRAINING


def test_a_busy_model_is_never_idle() -> None:
    node = machine("one")
    busy = running(made(node, "busy", idle_timeout_s=60), node, idle_s=10_000)
    demand.report(busy.pk, demand.Report(slots=1, busy=1, queued=0))
    scheduler.schedule("one")
    assert fresh(busy).state == S.READY


def test_a_queue_brings_another_replica_and_calm_takes_it_away(monkeypatch: pytest.MonkeyPatch) -> None:
    node = machine("one")
    served = made(node, "scaled", min_replicas=1, max_replicas=2)
    first = running(served, node)
    monkeypatch.setattr(demand, "held_for", lambda key, holds, now: 100.0 if holds else 0.0)
    demand.report(first.pk, demand.Report(slots=1, busy=1, queued=2))
    scheduler.schedule("one")
    assert served.instances.current().count() == 2
    second = served.instances.current().exclude(pk=first.pk).get()
    launched = launch_config.of(served).snapshot()
    Instance.objects.filter(pk=second.pk).update(state=S.READY, ready_at=timezone.now(), launched=launched)
    for one in (first, second):
        demand.report(one.pk, demand.Report(slots=1, busy=0, queued=0))
    scheduler.schedule("one")
    assert {fresh(first).state, fresh(second).state} == {S.READY, S.DRAINING}
    assert fresh(second).state == S.DRAINING, "the youngest goes"


def test_models_to_be_preloaded_are_wanted_at_the_start() -> None:
    node = machine("one")
    early, late = made(node, "early", preload=True), made(node, "late")
    off = made(node, "off", preload=True, enabled=False)
    scheduler.preload()
    scheduler.schedule("one")
    assert [state_of(one) for one in (early, late, off)] == [S.PENDING, "stopped", "stopped"]


# Room -----------------------------------------------------------------------------------------------------------------


def test_the_longest_idle_model_leaves_for_one_somebody_asks_for() -> None:
    node = machine("one", memory_limit_bytes=2200 * MIB)
    old = running(made(node, "old"), node, idle_s=500)
    young = running(made(node, "young"), node, idle_s=50)
    wanted = made(node, "wanted")
    demand.ask(wanted.pk)
    scheduler.schedule("one")
    assert (fresh(old).state, fresh(young).state) == (S.DRAINING, S.READY)
    assert "wanted" in fresh(old).reason
    assert ServedModel.objects.get(slug="old").desired_replicas == 0
    waiting = only(wanted)
    assert (waiting.node, waiting.cause) == (None, Shortage.NO_ROOM)
    # Nobody else has to leave while the first is leaving.
    scheduler.schedule("one")
    assert fresh(young).state == S.READY
    Instance.objects.filter(pk=old.pk).update(state=S.STOPPED, memory_bytes=None)
    scheduler.schedule("one")
    assert (only(wanted).node, only(wanted).cause) == (node, "")


def test_two_who_wait_are_made_room_for_at_the_same_time() -> None:
    node = machine("one", memory_limit_bytes=2200 * MIB)
    old = [running(made(node, slug), node, idle_s=100) for slug in ("old", "older")]
    wanted = [made(node, slug) for slug in ("first", "second")]
    for one in wanted:
        demand.ask(one.pk)
    scheduler.schedule("one")
    assert {fresh(one).state for one in old} == {S.DRAINING}
    late = made(node, "late")
    demand.ask(late.pk)
    Instance.objects.filter(pk=old[0].pk).update(state=S.STOPPED, memory_bytes=None)
    scheduler.schedule("one")
    assert [only(one).node for one in (*wanted, late)] == [node, None, None], "in their order"


@pytest.mark.parametrize(
    "how",
    [
        {"idle_s": 1},  # used a moment ago
        {"ready_at": timezone.now() + timedelta(days=1), "idle_s": 100},  # loaded a moment ago
        {"state": S.STARTING},
    ],
)
def test_who_is_needed_stays(how: dict[str, object]) -> None:
    node = machine("one", memory_limit_bytes=1500 * MIB)
    other = running(made(node, "other"), node, **how)
    wanted = made(node, "wanted")
    demand.ask(wanted.pk)
    scheduler.schedule("one")
    assert fresh(other).state == how.get("state", S.READY)
    assert only(wanted).cause == Shortage.NO_ROOM
    assert "GiB" in only(wanted).reason


@pytest.mark.parametrize("how", [{"pinned": True}, {"min_replicas": 1}])
def test_who_is_to_be_kept_stays(how: dict[str, object]) -> None:
    node = machine("one", memory_limit_bytes=1500 * MIB)
    other = running(made(node, "other", **how), node)
    wanted = made(node, "wanted")
    demand.ask(wanted.pk)
    scheduler.schedule("one")
    assert fresh(other).state == S.READY


def test_a_model_too_large_for_every_machine_says_so() -> None:
    node = machine("one", mib=2000)
    wanted = made(node, "huge", mib=5000, desired_replicas=1, min_replicas=1)
    scheduler.schedule("one")
    assert (only(wanted).state, only(wanted).cause) == (S.PENDING, Shortage.TOO_LARGE)
    assert "in all" in only(wanted).reason


def test_what_is_promised_to_one_is_not_given_to_the_next() -> None:
    node = machine("one", memory_limit_bytes=1500 * MIB)
    first, second = made(node, "first"), made(node, "second")
    for one in (first, second):
        demand.ask(one.pk)
    scheduler.schedule("one")
    assert (only(first).node, only(second).node) == (node, None)


def test_the_reserve_and_what_others_use_count() -> None:
    PortalConfig.objects.update(memory_reserve_mib=600)
    node = machine("far", mib=4000)
    Node.objects.filter(pk=node.pk).update(memory_free_bytes=1500 * MIB)
    machine("one")
    wanted = made(node, "wanted", desired_replicas=1, min_replicas=1)
    scheduler.schedule("one")
    assert only(wanted).node is None
    Node.objects.filter(pk=node.pk).update(memory_free_bytes=1900 * MIB)
    scheduler.schedule("one")
    assert only(wanted).node == node


def test_what_has_failed_holds_no_memory() -> None:
    node = machine("one", memory_limit_bytes=1500 * MIB)
    running(made(node, "broken"), node, state=S.FAILED, memory_bytes=None)
    wanted = made(node, "wanted")
    demand.ask(wanted.pk)
    scheduler.schedule("one")
    assert only(wanted).node == node


def test_a_large_machine_that_is_busy_is_waited_for_and_no_machine_is_not_called_too_small() -> None:
    large = machine("large", mib=3000, memory_limit_bytes=1500 * MIB)
    running(made(large, "busy", min_replicas=1), large)
    wanted = made(large, "wanted", desired_replicas=1, min_replicas=1)
    scheduler.schedule("large")
    assert only(wanted).cause == Shortage.NO_ROOM
    Node.objects.update(accepts_replicas=False)
    scheduler.schedule("large")
    assert only(wanted).cause == Shortage.NO_ROOM
    assert only(wanted).reason == "What could take it takes nothing new: large."


def test_making_room_never_takes_a_replica_that_is_always_kept() -> None:
    node = machine("one", memory_limit_bytes=3300 * MIB)
    several = made(node, "several", min_replicas=1, max_replicas=3)
    for _ in range(3):
        running(several, node, idle_s=100)
    huge = made(node, "huge", mib=3000)
    demand.ask(huge.pk)
    scheduler.schedule("one")
    assert several.instances.serving().count() >= 1
    small = made(node, "small", mib=900)
    demand.ask(small.pk)
    scheduler.schedule("one")
    assert several.instances.filter(state=S.DRAINING).count() == 1


# Nodes ----------------------------------------------------------------------------------------------------------------


def two_machines(**how: object) -> tuple[Node, Node, ServedModel]:
    one, two = machine("one"), machine("two")
    served = made(one, "both", content_id="same", **{"min_replicas": 2, "desired_replicas": 2} | how)
    ModelFile.objects.create(
        node=two,
        path="/elsewhere/copy.gguf",
        size_bytes=1,
        modified_at=timezone.now(),
        content_id="same",
    )
    return one, two, served


def test_replicas_are_spread_over_the_nodes_that_have_the_file() -> None:
    one, two, served = two_machines()
    machine("three-without-it")
    scheduler.schedule("one")
    assert {instance.node for instance in served.instances.current()} == {one, two}
    assert {instance.file.path for instance in served.instances.current()} == {
        "/models/both.gguf",
        "/elsewhere/copy.gguf",
    }


def test_labels_and_closed_nodes_are_honoured() -> None:
    one, two, served = two_machines(node_labels=["fast"])
    scheduler.schedule("one")
    assert {instance.node for instance in served.instances.current()} == {None}
    Node.objects.filter(pk=two.pk).update(labels=["fast", "cheap"])
    Node.objects.filter(pk=one.pk).update(labels=["fast"], accepts_replicas=False)
    scheduler.schedule("one")
    assert {instance.node for instance in served.instances.current()} == {two}


def test_the_replicas_of_a_silent_node_are_replaced_and_the_surplus_goes_when_it_returns() -> None:
    one, two, served = two_machines()
    here, there = running(served, one), running(served, two)
    Node.objects.filter(pk=two.pk).update(last_seen=timezone.now() - timedelta(minutes=1))
    scheduler.schedule("one")
    assert fresh(there).state == S.UNREACHABLE
    assert "two" in fresh(there).reason
    instead = served.instances.exclude(pk__in=[here.pk, there.pk]).get()
    assert (instead.state, instead.node) == (S.PENDING, one)
    instead.move_to(S.STARTING)
    instead.move_to(S.READY, ready_at=timezone.now(), launched=launch_config.of(served).snapshot())
    Node.objects.filter(pk=two.pk).update(last_seen=timezone.now())
    fresh(there).move_to(S.READY)
    scheduler.schedule("one")
    assert [fresh(each).state for each in (here, there, instead)] == [S.READY, S.READY, S.DRAINING]


def test_what_only_waited_for_a_silent_node_goes_elsewhere() -> None:
    one, two, served = two_machines(min_replicas=1, desired_replicas=1)
    Instance.objects.create(served=served, node=two, state=S.PENDING)
    Node.objects.filter(pk=two.pk).update(last_seen=timezone.now() - timedelta(minutes=1))
    scheduler.schedule("one")
    assert only(served).node == one


# Replacement ----------------------------------------------------------------------------------------------------------


def test_a_change_replaces_replicas_one_after_the_other(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    want(served, 2)
    passes.until(lambda: served.instances.serving().count() == 2)
    old = set(served.instances.serving().values_list("pk", flat=True))
    ServedModel.objects.update(threads=3)
    least = []

    def replaced() -> bool:
        serving = set(served.instances.serving().values_list("pk", flat=True))
        least.append(len(serving))
        return len(serving) == 2 and not serving & old

    passes.until(replaced)
    assert min(least) == 2, "a new one is ready before an old one goes"
    assert {one.launched["threads"] for one in served.instances.serving()} == {3}


def test_a_change_that_does_not_work_leaves_the_old_ones_running(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    want(served, 2)
    passes.until(lambda: served.instances.serving().count() == 2)
    old = set(served.instances.serving().values_list("pk", flat=True))
    ServedModel.objects.update(lora=["/no/such/flag.gguf"])
    passes.until(lambda: served.instances.filter(state=S.FAILED).exists())
    for _ in range(5):
        passes.once()
    assert set(served.instances.serving().values_list("pk", flat=True)) == old
    ServedModel.objects.update(lora=[])
    passes.until(lambda: served.instances.current().count() == 2)
    assert set(served.instances.serving().values_list("pk", flat=True)) == old


def test_settings_for_which_no_machine_has_room_leave_the_old_ones_running() -> None:
    node = machine("one", memory_limit_bytes=1500 * MIB)
    served = made(node, "grown", min_replicas=1)
    old = running(served, node)
    served.file.metadata["tensor_bytes"] = 5000 * MIB
    served.file.save()
    ServedModel.objects.update(threads=3)
    for _ in range(3):
        scheduler.schedule("one")
    assert fresh(old).state == S.READY
    waiting = served.instances.current().exclude(pk=old.pk).get()
    assert (waiting.state, waiting.cause) == (S.PENDING, Shortage.TOO_LARGE)


def test_a_successor_whose_place_was_taken_gets_that_of_the_old_one() -> None:
    node = machine("one", memory_limit_bytes=2200 * MIB)
    served = made(node, "changed", min_replicas=1)
    old = running(served, node)
    ServedModel.objects.update(threads=3)
    scheduler.schedule("one")
    successor = served.instances.current().exclude(pk=old.pk).get()
    assert successor.node == node
    # As if others had taken the memory before it was launched.
    Instance.objects.filter(pk=successor.pk).update(node=None, expected_bytes=None)
    running(made(node, "other", min_replicas=1), node)
    scheduler.schedule("one")
    scheduler.schedule("one")
    assert fresh(old).state == S.DRAINING


def test_an_older_portals_snapshot_is_not_outdated_by_a_parameter_it_did_not_know() -> None:
    node = machine("one")
    served = made(node, "older", min_replicas=1)
    old = running(served, node)
    launched = dict(old.launched)
    del launched["isolation"]
    Instance.objects.update(launched=launched)
    scheduler.schedule("one")
    assert fresh(old).state == S.READY
    assert served.instances.current().count() == 1


def test_without_room_for_two_the_old_one_goes_first(
    served: ServedModel, fake: Callable[..., None], passes: Passes, node: Node
) -> None:
    ModelFile.objects.update(
        metadata={
            "values": {},
            "tensor_bytes": 600 * MIB,
            "embedding_bytes": 0,
            "tied_output": False,
            "parts": 1,
        }
    )
    Node.objects.update(memory_limit_bytes=1000 * MIB)
    want(served, 1)
    passes.until(lambda: state_of(served) == S.READY)
    old = only(served).pk
    ServedModel.objects.update(threads=3)
    passes.until(lambda: served.instances.serving().exclude(pk=old).exists())
    assert served.instances.current().count() == 1


def test_a_file_with_other_content_under_its_name_is_loaded_anew(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    ModelFile.objects.update(content_id="one")
    want(served, 1)
    passes.until(lambda: state_of(served) == S.READY)
    old = only(served).pk
    ModelFile.objects.update(content_id="another")
    passes.until(lambda: served.instances.serving().exclude(pk=old).exists())
    passes.until(lambda: served.instances.current().count() == 1)


def test_time_outs_restart_nothing(served: ServedModel, fake: Callable[..., None], passes: Passes) -> None:
    want(served, 1)
    passes.until(lambda: state_of(served) == S.READY)
    before = only(served).pid
    ServedModel.objects.update(start_timeout_s=7, health_timeout_s=9, drain_timeout_s=3)
    for _ in range(3):
        passes.once()
    assert (state_of(served), only(served).pid) == (S.READY, before)


def test_new_settings_are_another_try_for_what_has_failed(
    served: ServedModel, fake: Callable[..., None], passes: Passes
) -> None:
    ServedModel.objects.update(extra_flags=["--tools"])
    want(served, 1)
    passes.until(lambda: state_of(served) == S.FAILED)
    ServedModel.objects.update(extra_flags=[])
    passes.until(lambda: state_of(served) == S.READY)


def test_loading_tells_how_far_it_is(
    served: ServedModel, fake: Callable[..., None], passes: Passes, tmp_path: Path
) -> None:
    fake(load_s=2.0)
    Instance.objects.create(
        served=served,
        node=Node.objects.get(),
        state=S.STOPPED,
        started_at=timezone.now() - timedelta(seconds=4),
        ready_at=timezone.now(),
    )
    want(served, 1)
    seen: list[int] = []

    def ready() -> bool:
        instance = only(served) if served.instances.current().exists() else None
        if instance and instance.state == S.STARTING:
            seen.append(instance.progress or 0)
        return bool(instance and instance.state == S.READY)

    passes.until(ready)
    assert len(set(seen)) > 2
    assert seen == sorted(seen)
    assert seen[-1] <= 99
    assert only(served).progress is None


def test_a_pass_reads_no_headers_of_files_nobody_serves(node: Node) -> None:
    made(node, "served")
    other = made(node, "other")
    other.delete()
    with CaptureQueriesContext(connection) as queries:
        world = World(node.name)
    rows = [one["sql"] for one in queries if 'FROM "models_admin_modelfile"' in one["sql"]]
    assert len(rows) == 1
    assert "chat_template" not in rows[0]
    assert '"metadata"' not in rows[0]
    assert [list(files) for files in world.files.values()] == [[node.pk]]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"accepts_replicas": False}, "What could take it takes nothing new: test-node."),
        ({"labels": ["cpu"]}, "No machine with its file has the labels it asks for: gpu."),
    ],
)
def test_who_finds_no_machine_says_what_keeps_it_from_them(
    node: Node, how: dict[str, object], words: str
) -> None:
    Node.objects.update(last_seen=timezone.now(), **{"labels": ["gpu"]} | how)
    served = made(node, "waiting", node_labels=["gpu"])
    want(served, 1)
    scheduler.schedule(node.name)
    assert only(served).reason == words


def test_who_has_no_file_where_anybody_answers_says_so(node: Node) -> None:
    served = made(machine("silent", alive=False), "far")
    want(served, 1)
    scheduler.schedule(node.name)
    assert only(served).reason == "No machine that answers has its file."
