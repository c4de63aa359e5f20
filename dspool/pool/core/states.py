"""The states of workers, slots and leases, and every legal move between them, as data.

Rules:
    1. A worker is marked draining, stopping or gone in the step that decides it; nothing is granted to it afterwards.
    2. A slot is leased from the instant Grant is decided. A slot with an unanswered frame is never idle.
    3. A lease that was sent ("written") is still GRANTED here: only its holder knows whether a send was attempted, and
       says so when it ends the lease, in the same step. So the core needs no state for it.
    4. An illegal move raises, and nothing has happened. The machine never makes one; tests try each.

The diagrams in docs/explanation/states.md are drawn from these tables.
"""

from __future__ import annotations

import enum
from typing import TypeVar

State = TypeVar("State", bound=enum.Enum)


class WorkerState(enum.StrEnum):
    """A worker's life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    GONE = "gone"


class SlotState(enum.StrEnum):
    """One of a worker's slots."""

    IDLE = "idle"
    LEASED = "leased"
    CANCELLING = "cancelling"
    ABANDONED = "abandoned"
    CLOSED = "closed"


class LeaseState(enum.StrEnum):
    """A call's right to a slot, from checkout to checkin."""

    QUEUED = "queued"
    CHECKING = "checking"
    GRANTED = "granted"
    CLOSED = "closed"


class PoolState(enum.StrEnum):
    """The pool itself."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSING = "closing"
    CLOSED = "closed"


WORKER_MOVES: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset({WorkerState.READY, WorkerState.STOPPING, WorkerState.GONE}),
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.STOPPING, WorkerState.GONE}),
    WorkerState.DRAINING: frozenset({WorkerState.STOPPING, WorkerState.GONE}),
    WorkerState.STOPPING: frozenset({WorkerState.GONE}),
    WorkerState.GONE: frozenset(),
}

SLOT_MOVES: dict[SlotState, frozenset[SlotState]] = {
    SlotState.IDLE: frozenset({SlotState.LEASED, SlotState.CLOSED}),
    SlotState.LEASED: frozenset({SlotState.IDLE, SlotState.CANCELLING, SlotState.ABANDONED, SlotState.CLOSED}),
    SlotState.CANCELLING: frozenset({SlotState.IDLE, SlotState.CLOSED}),
    SlotState.ABANDONED: frozenset({SlotState.IDLE, SlotState.CLOSED}),
    SlotState.CLOSED: frozenset(),
}

LEASE_MOVES: dict[LeaseState, frozenset[LeaseState]] = {
    LeaseState.QUEUED: frozenset({LeaseState.CHECKING, LeaseState.GRANTED, LeaseState.CLOSED}),
    LeaseState.CHECKING: frozenset({LeaseState.QUEUED, LeaseState.GRANTED, LeaseState.CLOSED}),
    LeaseState.GRANTED: frozenset({LeaseState.QUEUED, LeaseState.CLOSED}),
    LeaseState.CLOSED: frozenset(),
}

POOL_MOVES: dict[PoolState, frozenset[PoolState]] = {
    PoolState.OPEN: frozenset({PoolState.DRAINING, PoolState.CLOSING}),
    PoolState.DRAINING: frozenset({PoolState.OPEN, PoolState.CLOSING}),
    PoolState.CLOSING: frozenset({PoolState.CLOSED}),
    PoolState.CLOSED: frozenset(),
}


class IllegalMove(AssertionError):
    """The machine tried a move that the tables don't have: a bug in the machine."""


def moved(table: dict[State, frozenset[State]], old: State, new: State) -> State:
    """`new`, when the table allows the move from `old`.

    Raises:
        IllegalMove: it doesn't.
    """
    if new not in table[old]:
        raise IllegalMove(f"{old} -> {new} is not a legal move")
    return new
