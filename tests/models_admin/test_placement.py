from dataclasses import replace
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from models_admin.memory.placement import Decision, Need, Room, Tenant, choose

GIB = 2**30


def gib(ram: float, vram: float = 0) -> Need:
    return Need(int(ram * GIB), int(vram * GIB))


def tenant(name: str, ram: float = 1, *, idle_s: float | None = 60, evictable: bool = True) -> Tenant:
    return Tenant(name, name, gib(ram), idle_s, evictable)


def room(node: str = "gpu1", free: float = 0, *tenants: Tenant, replicas: int = 0, total: float = 64) -> Room:
    return Room(node, gib(free), gib(total), tenants, replicas)


def test_it_goes_where_it_fits() -> None:
    assert choose(gib(2), [room("a", 1), room("b", 2)]) == Decision("b", (), "It fits on b.")


def test_replicas_of_one_model_are_spread_then_the_roomiest_node_wins_then_the_name() -> None:
    assert choose(gib(1), [room("a", 9, replicas=1), room("b", 2), room("c", 3)]).node == "c"
    assert choose(gib(1), [room("b", 3), room("a", 3)]).node == "a"


def test_nobody_leaves_while_another_node_has_room() -> None:
    rooms = [room("a", 0, tenant("old", 4, idle_s=1e6)), room("b", 2, replicas=3)]
    assert choose(gib(2), rooms) == Decision("b", (), "It fits on b.")


def test_the_one_idle_for_longest_leaves() -> None:
    decision = choose(gib(1), [room("a", 0, tenant("new", idle_s=5), tenant("old", idle_s=50))])
    assert decision == Decision("a", ("old",), "It fits on a once old is unloaded.")


def test_nobody_leaves_who_need_not() -> None:
    tenants = tenant("small", 1, idle_s=50), tenant("large", 8, idle_s=5)
    assert choose(gib(8), [room("a", 0, *tenants)]).evict == ("large",)
    assert choose(gib(9), [room("a", 0, *tenants)]).evict == ("small", "large")


def test_between_nodes_the_fewest_leave_then_those_idle_for_longest() -> None:
    many = room("a", 0, tenant("one", idle_s=900), tenant("two", idle_s=900))
    few = room("b", 0, tenant("three", 2, idle_s=10))
    assert choose(gib(2), [many, few]).node == "b"
    assert choose(gib(2), [few, room("c", 0, tenant("four", 2, idle_s=20))]).node == "c"


def test_who_is_busy_or_may_not_leave_stays() -> None:
    for stays in (tenant("busy", idle_s=None), tenant("pinned", evictable=False)):
        decision = choose(gib(1), [room("gpu1", 0.25, stays)])
        assert decision == Decision(
            None,
            (),
            "It needs 1.0 GiB of memory; gpu1 has 0.2 GiB of memory free and nothing that could be unloaded now.",
        )


def test_the_refusal_says_what_is_needed_what_is_free_and_what_could_be_freed() -> None:
    decision = choose(gib(3.05), [room("gpu1", 1.25, tenant("smollm2", 0.5), tenant("busy", 9, idle_s=None))])
    assert decision.node is None
    assert decision.reason == (
        "It needs 3.1 GiB of memory; gpu1 has 1.2 GiB of memory free and could free 0.5 GiB of memory "
        "by unloading smollm2, which is too little."
    )
    assert choose(gib(3), [room("tiny", 1, total=2)]).reason == (
        "It needs 3.0 GiB of memory; tiny has only 2.0 GiB of memory in all."
    )
    assert choose(gib(3), []).reason == "It needs 3.0 GiB of memory, and there is no node that could take it."


def test_a_refusal_by_many_nodes_stays_readable() -> None:
    reason = choose(gib(20), [room(f"n{number}", number) for number in range(9)]).reason
    assert "n8 has 8.0 GiB of memory free" in reason
    assert reason.endswith("; 5 other nodes have less.")
    names = [tenant(f"t{number}", 0.1) for number in range(6)]
    assert "t0, t1, t2 and 3 others" in choose(gib(20), [room("a", 0, *names)]).reason


def test_gpu_memory_counts_by_itself() -> None:
    with_gpu = Room("gpu", gib(8, 4), gib(16, 8), (Tenant("x", "x", gib(0.5, 4), 60.0, True),))
    without = Room("cpu", gib(64), gib(64))
    assert choose(gib(1, 3), [with_gpu, without]) == Decision("gpu", (), "It fits on gpu.")
    assert choose(gib(1, 6), [with_gpu, without]).evict == ("x",)
    assert choose(gib(9), [with_gpu, without]).node == "cpu"
    assert "0.0 GiB of GPU memory in all" in choose(gib(1, 30), [without]).reason


def test_who_asks_for_no_gpu_memory_isnt_kept_out_by_a_full_gpu() -> None:
    assert choose(gib(1), [Room("a", gib(2, -1), gib(4, 8))]).node == "a"


amounts = st.builds(Need, st.integers(0, 20), st.integers(0, 8))
tenants = st.builds(
    Tenant,
    st.uuids(),
    st.sampled_from(("alpha", "beta")),
    amounts,
    st.none() | st.floats(0, 1e6),
    st.booleans(),
)
rooms = st.lists(
    st.builds(
        Room,
        st.text("abc", min_size=1, max_size=3),
        st.builds(Need, st.integers(-5, 20), st.integers(-5, 8)),
        st.just(Need(100, 100)),
        st.lists(tenants, max_size=5).map(tuple),
        st.integers(0, 2),
    ),
    max_size=4,
    unique_by=lambda one: one.node,
)


@given(amounts, rooms)
def test_whatever_is_decided_holds(need: Need, rooms: list[Room]) -> None:
    decision = choose(need, rooms)
    may_leave = {one.node: [t for t in one.tenants if t.evictable and t.idle_s is not None] for one in rooms}
    could_fit = [one for one in rooms if need.fits(sum((t.held for t in may_leave[one.node]), one.free))]
    assert decision.reason.endswith(".")
    if decision.node is None:
        assert not could_fit
        assert not decision.evict
        return
    chosen = next(one for one in could_fit if one.node == decision.node)
    leaving = [t for t in may_leave[chosen.node] if t.id in decision.evict]
    assert len(leaving) == len(decision.evict)
    freed = sum((t.held for t in leaving), chosen.free)
    assert need.fits(freed)
    if any(need.fits(one.free) for one in rooms):
        assert not leaving
        assert all(chosen.replicas_of_model <= one.replicas_of_model for one in rooms if need.fits(one.free))
    # Without any one of them it wouldn't fit.
    for kept in combinations(leaving, len(leaving) - 1) if leaving else ():
        assert not need.fits(sum((t.held for t in kept), chosen.free))


@given(amounts, rooms)
def test_more_room_never_turns_a_yes_into_a_no(need: Need, rooms: list[Room]) -> None:
    roomier = [replace(one, free=one.free + Need(3, 3)) for one in rooms]
    if choose(need, rooms).node is not None:
        assert choose(need, roomier).node is not None


@given(amounts, rooms)
def test_the_order_of_the_nodes_doesnt_matter(need: Need, rooms: list[Room]) -> None:
    decided, again = choose(need, rooms), choose(need, rooms[::-1])
    assert (decided.node, decided.evict) == (again.node, again.evict)
