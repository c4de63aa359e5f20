"""A reference model of the pool's core: tables that anybody can check by eye, and rules that say what a step may do.

It predicts no step. It follows each, effect by effect, and knows of each whether it was allowed: whoever is granted
must be the earliest that may use that worker; whoever is killed must have been condemned. At the end of a step it knows
what may not be left undone: a free slot with a waiter that could use it, a condemned worker alive, an empty place.

It knows one group without labels, overflow or restart policy, strict sessions, and no timers but those of calls that
were left behind in a slot. It shares no code with the core.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NEVER = 10**9


@dataclass
class Call:
    """A call on its way."""

    lease_id: int
    place: tuple[int, int]
    deadline: int
    session: str | None = None
    fail_fast: bool = False
    cancellable: bool = False
    skipped: set[int] = field(default_factory=set)
    removals: int = 0
    held: tuple[int, int] | None = None
    """(worker, slot) while it is granted; the worker may be gone."""


@dataclass
class Session:
    """Where a caller's key is at home."""

    home: int | None = None
    used: bool = False
    running: int = 0


@dataclass
class Worker:
    """A worker; `slots` says who is in each: a lease_id, 0 for nobody, or a negative one for a call left behind."""

    worker_id: int
    slots: list[int]
    state: str = "starting"
    due: bool = False
    left_until: dict[int, int] = field(default_factory=dict)
    """slot -> when the call left behind in it has had its time."""
    ends_by: int = NEVER
    """While it is stopping: from then on its place may be given to another."""

    @property
    def free(self) -> bool:
        """Whether it may be lent."""
        return self.state == "ready" and 0 in self.slots

    @property
    def leased(self) -> bool:
        """Whether a caller holds one of its slots."""
        return any(each > 0 for each in self.slots)


class Reference:
    """The tables. `tests/unit/core/test_stateful.py` puts the commands to it and to the core."""

    def __init__(self, size: int, slots: int, *, max_waiting: int, grace_s: int) -> None:
        self.size, self.slots, self.max_waiting, self.grace_s = size, slots, max_waiting, grace_s
        self.now = 0
        self.state = "open"
        self.paused = False
        self.workers: dict[int, Worker] = {}
        self.calls: dict[int, Call] = {}
        self.waiting: dict[int, Call] = {}
        self.sessions: dict[str, Session] = {}
        self.doomed: set[int] = set()
        """Workers that must be killed in this step."""

    # --- looks ----------------------------------------------------------------------------------------------------

    def of(self, *states: str) -> list[Worker]:
        """Workers in one of these states."""
        return [worker for worker in self.workers.values() if worker.state in states]

    def may_use(self, call: Call, worker: Worker) -> bool:
        """Whether a waiter may be lent this worker, if it has a free slot."""
        home = self.sessions[call.session].home if call.session is not None else None
        return worker.worker_id not in call.skipped and home in (None, worker.worker_id)

    def present(self) -> int:
        """Workers that take up a place."""
        return sum(worker.ends_by > self.now for worker in self.workers.values())

    def replacing(self) -> int:
        """1 while a due worker may have its replacement beside it."""
        return int(any(worker.due for worker in self.of("ready")))

    # --- what a command does of itself ----------------------------------------------------------------------------

    def leave_home(self, worker: Worker) -> None:
        """Its sessions are at home nowhere."""
        for session in self.sessions.values():
            if session.home == worker.worker_id:
                session.home, session.used = None, False

    def doom(self, worker: Worker) -> None:
        """It must be killed in this step."""
        if worker.state in ("starting", "ready", "draining"):
            self.doomed.add(worker.worker_id)
            worker.state = "stopping"
            self.leave_home(worker)

    def exited(self, worker: Worker) -> None:
        """It is no more; whoever holds it finds out later."""
        del self.workers[worker.worker_id]
        self.leave_home(worker)

    def release(self, call: Call, *, left: bool = False) -> None:
        """The call's slot is free again, or has it left behind in it."""
        worker = self.workers.get(call.held[0]) if call.held is not None else None
        if worker is not None and call.held is not None:
            slot = call.held[1]
            worker.slots[slot] = -call.lease_id if left else 0
            if left:
                since = self.now if call.cancellable else max(self.now, call.deadline)
                worker.left_until[slot] = since + self.grace_s
        call.held = None

    def stop_running(self, call: Call, *, ran: bool) -> None:
        """A granted call of a session is over, or waits again."""
        if call.session is not None and call.held is not None:
            session = self.sessions[call.session]
            session.running -= 1
            session.used = session.used or (ran and session.home == call.held[0])

    def wait_again(self, call: Call) -> None:
        """A verdict took its worker from it: it is as if it had never been granted."""
        self.stop_running(call, ran=False)
        session = self.sessions[call.session] if call.session is not None else None
        at_home = session is not None and call.held is not None and session.home == call.held[0]
        if session is not None and at_home and not session.used and not session.running:
            session.home = None
        self.waiting[call.lease_id] = call

    # --- what the core ordered ------------------------------------------------------------------------------------

    def grant(self, lease_id: int, worker_id: int, slot: int) -> None:
        """The earliest that may use it, and nobody else."""
        call, worker = self.waiting.pop(lease_id), self.workers[worker_id]
        assert not self.paused, "a paused pool grants nothing"
        assert worker.state == "ready", f"a {worker.state} worker is lent"
        assert worker.slots[slot] == 0, f"the slot belongs to {worker.slots[slot]}"
        assert self.may_use(call, worker)
        assert call.deadline >= self.now, "it is late"
        for other in self.waiting.values():
            earlier = other.place < call.place and other.deadline > self.now
            assert not (earlier and self.may_use(other, worker)), f"{other.lease_id} was first"
        worker.slots[slot] = lease_id
        call.held = worker_id, slot
        if call.session is not None:
            session = self.sessions[call.session]
            session.running += 1
            session.used = session.used and session.home == worker_id
            session.home = worker_id

    def refuse(self, lease_id: int, why: str) -> None:
        """Only for a reason that can be seen."""
        call = self.waiting.pop(lease_id)
        home = self.sessions[call.session].home if call.session is not None else None
        live = {worker.worker_id for worker in self.of("starting", "ready")}
        unsuited = home in call.skipped or (bool(call.skipped) and live <= call.skipped)
        reasons = {
            "QueueTimeout": call.deadline <= self.now,
            "PoolClosed": self.state != "open",
            "PoolSaturated": len(self.waiting) >= self.max_waiting,
            "SessionBusy": call.fail_fast and home is not None,
            "CheckoutSkipped": call.removals >= 3 or unsuited,
        }
        assert reasons.get(why), f"{lease_id} is refused for {why}"

    def spawn(self, worker_id: int) -> None:
        """Never more than there is room for."""
        assert self.state in ("open", "draining"), "a closing pool starts nobody"
        assert self.present() < self.size + self.replacing(), "there is no room"
        self.workers[worker_id] = Worker(worker_id, [0] * self.slots)

    def drain(self, worker_id: int, reason: str) -> None:
        """A worker is retired: for a reason that can be seen."""
        worker = self.workers[worker_id]
        late = any(until <= self.now for until in worker.left_until.values())
        reasons = {
            "reloaded": worker.due,
            "resized": len(self.of("starting", "ready")) > self.size,
            "stopped": self.state == "closing",
            "cancelled": late,
            "timeout": late,
        }
        assert worker.state == "ready", f"a {worker.state} worker is retired"
        assert reasons.get(reason), f"worker {worker_id} is retired for {reason}"
        worker.state, worker.due = "draining", False
        self.leave_home(worker)

    def stop(self, worker_id: int) -> None:
        """Only who drains and runs nothing."""
        worker = self.workers[worker_id]
        assert worker.state == "draining", f"a {worker.state} worker is stopped"
        assert not any(worker.slots), f"slots {worker.slots} are in use"
        worker.state, worker.ends_by = "stopping", self.now + 2 * self.grace_s

    def kill(self, worker_id: int) -> None:
        """Only who was condemned, drains around a call that was left behind, or is one too many and hasn't started."""
        worker = self.workers[worker_id]
        stuck = worker.state == "draining" and not worker.leased and bool(worker.left_until)
        spare = worker.state == "starting" and (
            self.state == "closing" or len(self.of("starting", "ready")) > self.size
        )
        assert worker_id in self.doomed or stuck or spare, f"the {worker.state} worker {worker_id} is killed"
        self.doomed.discard(worker_id)
        worker.state, worker.ends_by = "stopping", self.now + self.grace_s

    # --- the end of a step ----------------------------------------------------------------------------------------

    def settled(self) -> None:
        """Nothing is left undone."""
        assert not self.doomed, f"workers {self.doomed} should have been killed"
        for worker in self.of("ready"):
            if worker.free and not self.paused:
                waits = [call.lease_id for call in self.waiting.values() if self.may_use(call, worker)]
                assert not waits, f"{waits} wait though worker {worker.worker_id} is free"
        for worker in self.of("draining"):
            assert worker.leased, f"worker {worker.worker_id} has drained, and nobody ends it"
        if self.state in ("open", "draining"):
            lendable = len(self.of("starting", "ready"))
            room = self.present() < self.size
            assert not (room and lendable < self.size), f"{lendable} of {self.size} workers, and nobody is started"
        else:
            assert not self.waiting, "a closing pool lets nobody wait"
            assert not self.of("starting", "ready"), "a closing pool keeps workers"

    def ticked(self) -> None:
        """What time alone brings."""
        for worker in self.of("ready"):
            late = [slot for slot, until in worker.left_until.items() if until <= self.now]
            assert not late, f"worker {worker.worker_id}: the call left behind in slot {late} has had its time"
