"""The transition tables, cell by cell."""

from __future__ import annotations

import enum
import itertools
from typing import Any

import pytest

from dspool.pool.core.records import Group, Lease, Slot, Worker
from dspool.pool.core.states import (
    LEASE_MOVES,
    POOL_MOVES,
    SLOT_MOVES,
    WORKER_MOVES,
    IllegalMove,
    LeaseState,
    PoolState,
    SlotState,
    WorkerState,
    moved,
)
from tests.unit.core.world import World

pytestmark = pytest.mark.unit

TABLES: dict[str, tuple[type[enum.StrEnum], dict[Any, frozenset[Any]], str]] = {
    "worker": (WorkerState, WORKER_MOVES, "starting"),
    "slot": (SlotState, SLOT_MOVES, "idle"),
    "lease": (LeaseState, LEASE_MOVES, "queued"),
    "pool": (PoolState, POOL_MOVES, "open"),
}
CELLS = [
    pytest.param(table, old, new, id=f"{name}-{old}-{new}")
    for name, (states, table, _) in TABLES.items()
    for old, new in itertools.product(states, states)
]
LEGAL = {
    "worker": {
        ("starting", "ready"),
        ("starting", "stopping"),
        ("starting", "gone"),
        ("ready", "draining"),
        ("ready", "stopping"),
        ("ready", "gone"),
        ("draining", "stopping"),
        ("draining", "gone"),
        ("stopping", "gone"),
    },
    "slot": {
        ("idle", "leased"),
        ("idle", "closed"),
        ("leased", "idle"),
        ("leased", "cancelling"),
        ("leased", "abandoned"),
        ("leased", "closed"),
        ("cancelling", "idle"),
        ("cancelling", "closed"),
        ("abandoned", "idle"),
        ("abandoned", "closed"),
    },
    "lease": {
        ("queued", "checking"),
        ("queued", "granted"),
        ("queued", "closed"),
        ("checking", "queued"),
        ("checking", "granted"),
        ("checking", "closed"),
        ("granted", "queued"),
        ("granted", "closed"),
    },
    "pool": {
        ("open", "draining"),
        ("open", "closing"),
        ("draining", "open"),
        ("draining", "closing"),
        ("closing", "closed"),
    },
}


@pytest.mark.parametrize(("table", "old", "new"), CELLS)
def test_a_move_is_made_if_the_table_has_it_and_raises_if_not(table: Any, old: Any, new: Any) -> None:
    if new in table[old]:
        assert moved(table, old, new) is new
    else:
        with pytest.raises(IllegalMove, match=f"{old} -> {new}"):
            moved(table, old, new)


@pytest.mark.parametrize("name", TABLES)
def test_the_table_has_exactly_the_moves_of_the_design(name: str) -> None:
    _, table, _ = TABLES[name]
    assert {(str(old), str(new)) for old, news in table.items() for new in news} == LEGAL[name]


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_closed_every_state_is_reached_and_one_is_final(name: str) -> None:
    states, table, first = TABLES[name]
    assert set(table) == set(states)
    reached, front = set(), {states(first)}
    while front:
        state = front.pop()
        reached.add(state)
        front |= table[state] - reached
    assert reached == set(states)
    assert [state for state in states if not table[state]] == [list(states)[-1]]


@pytest.mark.parametrize(("old", "new"), list(itertools.product(SlotState, SlotState)))
def test_an_illegal_move_of_a_slot_changes_nothing(old: SlotState, new: SlotState) -> None:
    slot = Slot(state=old)
    if new in SLOT_MOVES[old]:
        slot.to(new)
        assert slot.state is new
    else:
        with pytest.raises(IllegalMove):
            slot.to(new)
        assert slot.state is old


@pytest.mark.parametrize(("old", "new"), list(itertools.product(LeaseState, LeaseState)))
def test_an_illegal_move_of_a_lease_changes_nothing(old: LeaseState, new: LeaseState) -> None:
    lease = Lease(lease_id=1, call_id=1, created_at=0.0, state=old)
    if new in LEASE_MOVES[old]:
        lease.to(new)
        assert lease.state is new
    else:
        with pytest.raises(IllegalMove):
            lease.to(new)
        assert lease.state is old


def counts(group: Group) -> tuple[int, int, int, int]:
    return group.starting, group.ready, group.draining, group.stopping


@pytest.mark.parametrize(("old", "new"), list(itertools.product(WorkerState, WorkerState)))
def test_a_worker_moves_together_with_its_groups_counts_or_not_at_all(old: WorkerState, new: WorkerState) -> None:
    (group,) = World(workers=1).core.groups.values()
    worker = Worker(worker_id=1, group=group, slots=[Slot()], started_at=0.0, state=old)
    if old is not WorkerState.GONE:
        setattr(group, old.value, 1)
    before = counts(group)
    if new in WORKER_MOVES[old]:
        worker.to(new)
        assert worker.state is new
        assert sum(counts(group)) == (new is not WorkerState.GONE)
        assert new is WorkerState.GONE or getattr(group, new.value) == 1
    else:
        with pytest.raises(IllegalMove):
            worker.to(new)
        assert worker.state is old
        assert counts(group) == before


def test_a_lease_is_granted_once_its_verdict_is_given() -> None:
    lease = Lease(1, 1, 0.0)
    lease.to(LeaseState.CHECKING)
    assert not lease.is_granted
    lease.to(LeaseState.GRANTED)
    assert lease.is_granted
