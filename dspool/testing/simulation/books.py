"""The simulator's own books: who holds which slot, what sessions were told, and which moves were seen.

    books.step(command, effects)     after each step: raises where they contradict what the core did
    moves.step(core, effects)        after each step: which moves of the state tables were seen

Rules:
    1. The books are kept from what was said to the core and what it ordered. Of its tables they read only what a
       caller may: the lease it was granted or refused; and which sessions it still knows, and where.
    2. A slot never has two callers; one with an unanswered call belongs to the lease that left it there.
    3. Whoever runs elsewhere after its session left state in a worker is told, and told once.
    4. They change nothing in the world and draw no chance.
"""

from __future__ import annotations

import enum
from typing import Any

from dspool.pool.core import commands as c
from dspool.pool.core.machine import PoolCore
from dspool.pool.core.records import Lease
from dspool.pool.core.states import LeaseState, PoolState, SlotState, WorkerState
from dspool.types import KEEP

Move = tuple[enum.StrEnum, enum.StrEnum]
_HELD = (LeaseState.CHECKING, LeaseState.GRANTED)
_BIRTH: dict[type, Any] = {
    WorkerState: WorkerState.STARTING,
    SlotState: SlotState.IDLE,
    LeaseState: LeaseState.QUEUED,
    PoolState: PoolState.OPEN,
}
_DEATH: dict[type, Any] = {
    WorkerState: WorkerState.GONE,
    SlotState: SlotState.CLOSED,
    LeaseState: LeaseState.CLOSED,
    PoolState: PoolState.CLOSED,
}
_STOPPED: set[Move] = {
    (WorkerState.READY, WorkerState.DRAINING),
    (WorkerState.DRAINING, WorkerState.STOPPING),
}
"""A worker that had nothing to drain goes through both in one step."""


class SessionBook:
    """What the simulator knows of a session.

    Attributes:
        place: the worker of its last grant.
        here: calls that left state there, or may have, since it came there.
        sure: those among them that were answered. A call that was given up may have left some, or none.
        gone: calls that left state elsewhere since somebody was told of a loss.
        unheard: those among them whose loss a caller was told of that never looked.
        owed: what a lease was told for, until its caller has looked.
    """

    __slots__ = ("gone", "here", "owed", "place", "sure", "unheard")

    def __init__(self) -> None:
        self.place: int | None = None
        self.here = self.sure = self.gone = self.unheard = 0
        self.owed: dict[int, int] = {}

    def leave(self) -> None:
        """Whatever it left in its place is behind it now."""
        self.gone, self.here, self.sure, self.place = self.gone + self.here, 0, 0, None

    def told(self, lease_id: int) -> None:
        """This lease is told of what is gone."""
        self.owed[lease_id], self.gone, self.unheard = self.gone, 0, 0


class Books:
    """Slots and sessions, as the world saw them.

    Args:
        core: whose leases are read.
    """

    def __init__(self, core: PoolCore) -> None:
        self._core = core
        self.holders: dict[tuple[int, int], int] = {}
        """(worker_id, slot) -> the lease that holds it; minus the lease whose call was left in it."""
        self.sessions: dict[str, SessionBook] = {}
        self.ran_in: dict[int, tuple[str | None, int]] = {}
        """lease_id -> its session and worker."""

    def step(self, command: c.Command, effects: list[c.Effect]) -> None:
        """Raise AssertionError where the core did what these books don't allow."""
        self._book(command, effects)
        self._book_sessions(command, effects)

    def _book(self, command: c.Command, effects: list[c.Effect]) -> None:
        """Who holds which slot, from what was said and ordered alone; minus the lease whose call was left in it."""
        holders = self.holders
        over: set[int] = set()
        left: dict[int, tuple[int, int]] = {}
        if isinstance(command, (c.Checkin, c.Cancel)):
            over.add(command.lease_id)
        elif isinstance(command, c.CheckoutVerdict):
            if command.verdict != KEEP:
                over.add(command.lease_id)
        elif isinstance(command, c.SlotSettled):
            key = command.worker_id, command.slot
            if holders.get(key) == -command.lease_id:
                del holders[key]
        for effect in effects:
            if isinstance(effect, c.Report) and effect.event in ("lease.expired", "hook.late"):
                over.add(effect.fields["lease_id"])
            elif isinstance(effect, (c.Abandon, c.CancelCall)):
                left[effect.lease_id] = effect.worker_id, effect.slot
        if over:
            self._let_go(over, left)
        for effect in effects:
            if isinstance(effect, c.Grant):
                self._let_go({effect.lease_id}, {})
                lease = self._core.leases[effect.lease_id]
                assert lease.worker_id is not None
                key = lease.worker_id, lease.slot
                assert key not in holders, f"slot {key} has two callers: leases {holders[key]} and {lease.lease_id}"
                holders[key] = lease.lease_id

    def _let_go(self, over: set[int], left: dict[int, tuple[int, int]]) -> None:
        for key, lease_id in list(self.holders.items()):
            if lease_id in over:
                del self.holders[key]
                if left.get(lease_id) == key:
                    self.holders[key] = -lease_id

    def _book_sessions(self, command: c.Command, effects: list[c.Effect]) -> None:
        """State that sessions keep in workers: whoever runs elsewhere after it is told, and told once."""
        if isinstance(command, (c.Checkin, c.RunEnded, c.Cancel, c.CheckoutVerdict)):
            name, worker_id = self.ran_in.get(command.lease_id, (None, 0))
            if name is not None:
                self._session_ran(command, name, worker_id)
        for effect in effects:
            if isinstance(effect, c.Report) and effect.event in ("lease.expired", "hook.late"):
                lease_id, written = effect.fields["lease_id"], effect.event == "lease.expired"
                name, worker_id = self.ran_in.get(lease_id, (None, 0))
                if name is not None:
                    self._session_ran(c.Cancel(lease_id, written), name, worker_id)
            if not isinstance(effect, (c.Grant, c.Reject)):
                continue
            lease = self._core.leases[effect.lease_id]
            if lease.session is None:
                continue
            if lease.refusal is not None:
                self._session_refused(lease, lease.session, effects)
            else:
                self._session_granted(lease, lease.session)
        for name in [name for name in self.sessions if name not in self._core.sessions.table]:
            del self.sessions[name]

    def _session_granted(self, lease: Lease, name: str) -> None:
        state, who = self.sessions.setdefault(name, SessionBook()), f"lease {lease.lease_id}"
        assert lease.worker_id is not None
        due = state.unheard
        if state.place != lease.worker_id:
            due += state.sure
            state.leave()
        assert lease.session_restarted or not due, f"{who} isn't told that state of its session was lost"
        self.ran_in[lease.lease_id] = name, lease.worker_id
        state.place = lease.worker_id
        if lease.session_restarted:
            assert state.gone, f"{who} is told of a loss, and there was none, or it was told before"
            state.told(lease.lease_id)

    def _session_refused(self, lease: Lease, name: str, effects: list[c.Effect]) -> None:
        """A caller who wants to be told is told. Where the session is can be seen after the step alone."""
        assert lease.refusal is not None
        if lease.refusal.code != "SessionLost":
            return
        state, session = self.sessions.setdefault(name, SessionBook()), self._core.sessions.table.get(name)
        moved = session is None or session.worker_id != state.place
        known = bool(state.gone)
        if moved or (not known and self._is_granted(name, effects)):  # it may have gone, and come back
            may_be_told_of = state.here if known else 0
            state.leave()
        else:
            may_be_told_of = 0
        assert state.gone, f"lease {lease.lease_id} is refused for a loss, and there was none, or it was told before"
        state.told(lease.lease_id)
        state.gone = may_be_told_of  # it moved in this step: after it was told of what was gone before, or sooner

    def _is_granted(self, name: str, effects: list[c.Effect]) -> bool:
        granted = [effect.lease_id for effect in effects if isinstance(effect, c.Grant)]
        return any(self._core.leases[lease_id].session == name for lease_id in granted)

    def _session_ran(
        self, command: c.Checkin | c.RunEnded | c.Cancel | c.CheckoutVerdict, name: str, worker_id: int
    ) -> None:
        lease = self._core.leases.get(command.lease_id)
        kept = lease is not None and lease.state in _HELD and lease.worker_id == worker_id
        if not kept:
            del self.ran_in[command.lease_id]
        state = self.sessions.get(name)
        if state is None:
            return
        answered = isinstance(command, (c.Checkin, c.RunEnded)) and command.outcome in ("ok", "failed")
        given_up = isinstance(command, c.Cancel) and command.written
        if answered or given_up:
            if state.place == worker_id:
                state.here, state.sure = state.here + 1, state.sure + answered
            else:
                state.gone += 1
        if given_up or isinstance(command, (c.Checkin, c.RunEnded)):
            state.owed.pop(command.lease_id, None)
        elif not kept:  # it never looked at what it was told: another is told instead
            owed = state.owed.pop(command.lease_id, 0)
            state.gone, state.unheard = state.gone + owed, state.unheard + owed


class MovesSeen:
    """Which moves of the state tables the steps of one core made.

    Args:
        moves: where they are put.
    """

    def __init__(self, moves: set[Move]) -> None:
        self._moves = moves
        self._before: dict[Any, Any] = {}

    def step(self, core: PoolCore, effects: list[c.Effect]) -> None:
        """Which moves of the state tables were seen. Of two at once only the sum is, and that is not a legal move."""
        now: dict[Any, Any] = {0: core.state}
        for worker_id, worker in core.workers.items():
            now[worker_id, -1] = worker.state
            for index, slot in enumerate(worker.slots):
                now[worker_id, index] = slot.state
        for lease_id, lease in core.leases.items():
            now[-lease_id] = lease.state
        before, self._before = self._before, now
        if now != before:
            for key, new in now.items():
                if before.get(key) is not new:
                    self._moves.add((before.get(key) or _BIRTH[type(new)], new))
            for key, old in before.items():
                if key not in now:
                    self._moves.add((old, _DEATH[type(old)]))
        for effect in effects:
            if type(effect) is c.Stop:
                self._moves |= _STOPPED
