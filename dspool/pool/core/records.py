"""The rows of the core's tables: groups, workers, slots, leases. Plain data; the machine alone changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from dspool.options import WorkerGroup
from dspool.pool.core.commands import INFINITY, Refusal
from dspool.pool.core.restarts import Breaker
from dspool.pool.core.states import (
    LEASE_MOVES,
    SLOT_MOVES,
    WORKER_MOVES,
    IllegalMove,
    LeaseState,
    SlotState,
    WorkerState,
    moved,
)
from dspool.types import Affinity, ExitReason

if TYPE_CHECKING:
    from dspool.pool.core.idle import IdleWorkers
    from dspool.pool.core.shedding import Line

WaitKey = tuple[int | None, frozenset[str], frozenset[int]]
"""A class of waiters: the worker they are pinned to, the labels they require, the workers that skipped them."""


class Slot(msgspec.Struct):
    """The right to run one call at a time in a worker."""

    state: SlotState = SlotState.IDLE
    lease_id: int | None = None
    left_behind: tuple[str | None, int] | None = None
    """(program, call_id) of the call that its lease left in it."""

    def to(self, state: SlotState) -> None:
        """Move, if the table allows it."""
        if state not in SLOT_MOVES[self.state]:
            raise IllegalMove(f"slot: {self.state} -> {state}")
        self.state = state


class Lease(msgspec.Struct):
    """One call's way from checkout to checkin."""

    lease_id: int
    call_id: int
    created_at: float
    program: str | None = None
    session: str | None = None
    affinity: Affinity = "hint"
    session_lost_is_error: bool = False
    require: frozenset[str] = frozenset()
    priority: int = 0
    deadline: float = INFINITY
    hold_s: float = INFINITY
    size_bytes: int = 0
    cancellable: bool = False
    state: LeaseState = LeaseState.QUEUED
    wait_key: WaitKey | None = None
    """Where it stands in the queue; None while it doesn't."""
    line: Line | None = None
    """Where it stands as a newcomer that waits for its first grant, in a pool that sheds."""
    worker_id: int | None = None
    slot: int = -1
    granted_at: float = 0.0
    run_since: float = 0.0
    running: bool = False
    """Whether its program may be in the worker: False for a lease without a program between two runs."""
    spilled: bool = False
    """It waited affinity_wait_s for its session's worker, or that one doesn't suit it: any worker will do."""
    session_restarted: bool = False
    trial: bool = False
    """The one call of a quarantined program that is let through."""
    removed: dict[int, str] = {}
    found_dead: int = 0
    """How many of these had ended by themselves, or were about to end."""
    skipped: dict[int, str] = {}
    refusal: Refusal | None = None

    @property
    def all_found_dead(self) -> bool:
        """Whether it was granted workers, and every one of them had died by itself."""
        return 0 < self.found_dead == len(self.removed) + len(self.skipped)

    @property
    def is_granted(self) -> bool:
        """Whether it holds its slot, the verdict given."""
        return self.state is LeaseState.GRANTED

    def to(self, state: LeaseState) -> None:
        """Move, if the table allows it."""
        if state not in LEASE_MOVES[self.state]:
            raise IllegalMove(f"lease: {self.state} -> {state}")
        self.state = state


class Group(msgspec.Struct):
    """Workers of one kind."""

    options: WorkerGroup
    size: int
    overflow: int
    breaker: Breaker
    idle: IdleWorkers
    number: int = 0
    """Its place among the groups; the key of its timers."""
    due: dict[int, Worker] = {}
    """Ready workers that wait for their replacement, first come first."""
    starting: int = 0
    ready: int = 0
    draining: int = 0
    stopping: int = 0
    """Stopping workers that still count: not reaped, and not grace_s over."""

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def lendable(self) -> int:
        """Workers that are or will be lent."""
        return self.starting + self.ready

    @property
    def present(self) -> int:
        """Workers that count against the limit of law 4."""
        return self.starting + self.ready + self.draining + self.stopping


class Worker(msgspec.Struct):
    """One OS process."""

    worker_id: int
    group: Group
    slots: list[Slot]
    started_at: float
    state: WorkerState = WorkerState.STARTING
    free: list[int] = []
    """Indices of idle slots."""
    overflow: bool = False
    ready_at: float | None = None
    idle_since: float = 0.0
    calls: int = 0
    good: bool = False
    """It gave an answer, or a pong."""
    programs: dict[str, None] = {}
    """Programs it holds warm, the most recently used last."""
    last_program: str | None = None
    """The last of them."""
    sessions: dict[str, None] = {}
    """Sessions pinned to it."""
    due: ExitReason | None = None
    replaces: int | None = None
    """The due worker that it is started for."""
    reason: ExitReason | None = None
    """Why it is draining or stopping."""
    killed: bool = False
    """A Kill was ordered; a Stop may still take its time."""
    turn: int = 0
    """Grows each time it is lent or comes back: the most recently used has the highest."""
    counted: bool = True
    """Whether it counts in its group while it is stopping."""
    probing: bool = False
    probed_at: float = 0.0
    missed_pings: int = 0
    pinged_at: float | None = None
    """When it last answered a ping."""
    ping_s: float | None = None
    """How long that took."""
    rss_bytes: int | None = None
    warm_rss_bytes: int | None = None
    """The first sample after its first answered call."""
    rss_over: int = 0
    """Samples in a row that were too large."""
    request_limit: float = INFINITY
    in_flight: list[tuple[str | None, int]] = []
    """(program, call_id) of the calls that were in it when it was first known to be dead."""
    dead: bool = False
    """in_flight was taken."""

    @property
    def busy(self) -> int:
        """Slots that are not idle."""
        return len(self.slots) - len(self.free)

    @property
    def in_trouble(self) -> bool:
        """Whether a cancelled or abandoned call may still run in it."""
        return any(slot.state in (SlotState.CANCELLING, SlotState.ABANDONED) for slot in self.slots)

    @property
    def leased(self) -> int:
        """Slots that are leased."""
        return sum(slot.state is SlotState.LEASED for slot in self.slots)

    def to(self, state: WorkerState) -> None:
        """Move, if the table allows it, and keep the group's counts."""
        old, group = self.state, self.group
        self.state = moved(WORKER_MOVES, old, state)
        for name, change in ((old.value, -1), (state.value, 1)):
            if name == "gone" or (name == "stopping" and not self.counted):
                continue
            setattr(group, name, getattr(group, name) + change)
