"""World: a core under test, with short names for the commands and the invariants checked after every step.

Ids are given out in order: leases 1, 2, 3, ... as they are checked out, workers 1, 2, 3, ... by the core. Time is
whatever the test says; a step without `now` happens at the time of the last one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import settings

from dspool.options import PoolOptions
from dspool.pool.core import commands as c, invariants
from dspool.pool.core.machine import PoolCore
from dspool.pool.core.records import Lease, Worker
from dspool.pool.core.states import LeaseState, WorkerState
from dspool.pool.core.wakes import Wakes
from dspool.pool.events import EVENTS
from dspool.types import ExitReason, ExitReport, Remove, Skip

STEADY = settings(derandomize=True, deadline=None, database=None)
"""The same examples in every run; each test says how many."""


def exit_report(worker_id: int, reason: ExitReason = "crash", detail: str = "") -> ExitReport:
    """What the supervisor would say of a worker's end."""
    return ExitReport(worker_id=worker_id, pid=1000 + worker_id, reason=reason, detail=detail)


class World:
    """A core, what it said in the last step, and what it said so far.

    Attributes:
        said: the last step's effects, reports left out.
        events: the names of the last step's reports.
        reports: those reports themselves.
    """

    def __init__(self, **options: Any) -> None:
        options = {"start_concurrency": 64, "ping_interval_s": None, "name": "w", **options}
        self.core = PoolCore(PoolOptions(**options))
        self.now = 0.0
        self.said: list[c.Effect] = []
        self.reports: list[c.Report] = []
        self.events: list[str] = []
        self._last_lease = 0
        self._wakes = Wakes()

    @classmethod
    def ready(cls, workers: Any, **options: Any) -> World:
        """An eager pool whose workers (a number, or groups) are all ready at 0.0."""
        world = cls(workers=workers, **options)
        world.tick(0.0)
        world.all_ready()
        return world

    # --- steps ----------------------------------------------------------------------------------------------------

    def do(self, command: c.Command, now: float | None = None) -> list[c.Effect]:
        """One step, the invariants, and the effects that are orders."""
        self.now = self.now if now is None else now
        effects = self.core.handle(command, self.now)
        self.said = [effect for effect in effects if not isinstance(effect, c.Report)]
        self.reports = [effect for effect in effects if isinstance(effect, c.Report)]
        self.events = [report.event for report in self.reports]
        for report in self.reports:
            assert tuple(report.fields) == EVENTS[report.event].fields, f"{report}: not the fields that are documented"
        invariants.check(self.core)
        invariants.check_effects(self.core, effects)
        self._wakes.step(self.core, effects)
        return self.said

    def tick(self, now: float | None = None) -> list[c.Effect]:
        said = self.do(c.Tick(), now)
        upcoming = self.core.next_deadline()
        assert upcoming is None or upcoming > self.now, "a Tick leaves work undone"
        return said

    def run_until(self, now: float) -> int:
        """Tick whenever the core asks for it, until `now`. Returns how often it asked."""
        wakeups = 0
        while (upcoming := self.core.next_deadline()) is not None and upcoming <= now:
            self.tick(max(upcoming, self.now))
            wakeups += 1
        self.now = now
        return wakeups

    def checkout(self, now: float | None = None, **fields: Any) -> int:
        """The new lease's id."""
        self._last_lease += 1
        lease_id = fields.pop("lease_id", self._last_lease)
        if isinstance(fields.get("require"), str):
            fields["require"] = frozenset({fields["require"]})
        self.do(c.Checkout(lease_id, fields.pop("call_id", lease_id), **fields), now)
        return int(lease_id)

    def checkouts(self, number: int, **fields: Any) -> list[int]:
        return [self.checkout(**fields) for _ in range(number)]

    def checkin(self, lease_id: int, outcome: c.Outcome = "ok", now: float | None = None) -> list[c.Effect]:
        return self.do(c.Checkin(lease_id, outcome), now)

    def run(self, now: float | None = None, outcome: c.Outcome = "ok", **fields: Any) -> int:
        """A whole call that finds a free worker. Returns the worker's id."""
        lease_id = self.checkout(now, **fields)
        worker_id = self.worker_of(lease_id)
        self.checkin(lease_id, outcome)
        return worker_id

    def cancel(self, lease_id: int, *, written: bool = False, why: Any = "cancelled", now: float | None = None) -> Any:
        return self.do(c.Cancel(lease_id, written, why), now)

    def remove(self, lease_id: int, reason: str = "bad", now: float | None = None, *, died: bool = False) -> Any:
        return self.do(c.CheckoutVerdict(lease_id, Remove(reason), died), now)

    def skip(self, lease_id: int, reason: str = "no", now: float | None = None) -> list[c.Effect]:
        return self.do(c.CheckoutVerdict(lease_id, Skip(reason)), now)

    def become_ready(self, worker_id: int, now: float | None = None) -> list[c.Effect]:
        return self.do(c.WorkerReady(worker_id), now)

    def all_ready(self) -> None:
        for worker_id in [worker.worker_id for worker in self.workers(WorkerState.STARTING)]:
            self.become_ready(worker_id)

    def exit(self, worker_id: int, reason: ExitReason = "crash", now: float | None = None, detail: str = "") -> Any:
        return self.do(c.WorkerExited(worker_id, exit_report(worker_id, reason, detail)), now)

    def fail_start(self, reason: ExitReason = "boot_error", now: float | None = None) -> int:
        """The one worker that is starting fails. Returns its id."""
        (worker,) = self.workers(WorkerState.STARTING)
        self.exit(worker.worker_id, reason, now)
        return worker.worker_id

    # --- looks ----------------------------------------------------------------------------------------------------

    def workers(self, *states: WorkerState) -> list[Worker]:
        return [worker for worker in self.core.workers.values() if not states or worker.state in states]

    def states(self) -> dict[int, str]:
        """worker_id -> state."""
        return {worker.worker_id: worker.state.value for worker in self.core.workers.values()}

    def lease(self, lease_id: int) -> Lease:
        return self.core.leases[lease_id]

    def granted(self, lease_id: int) -> bool:
        lease = self.core.leases.get(lease_id)
        return lease is not None and lease.state in (LeaseState.CHECKING, LeaseState.GRANTED)

    def waiting(self, lease_id: int) -> bool:
        lease = self.core.leases.get(lease_id)
        return lease is not None and lease.state is LeaseState.QUEUED

    def worker_of(self, lease_id: int) -> int:
        assert self.granted(lease_id), f"lease {lease_id} has no worker: {self.core.leases.get(lease_id)}"
        worker_id = self.lease(lease_id).worker_id
        assert worker_id is not None
        return worker_id

    def refusal(self, lease_id: int) -> c.Refusal:
        refusal = self.lease(lease_id).refusal
        assert refusal is not None, f"lease {lease_id} was not refused"
        return refusal

    def refused(self, lease_id: int) -> str | None:
        """The name of the error, or None."""
        lease = self.core.leases.get(lease_id)
        return lease.refusal.code if lease is not None and lease.refusal is not None else None

    def slots(self, worker_id: int) -> list[str]:
        """The states of the worker's slots, in order."""
        return [slot.state.value for slot in self.core.workers[worker_id].slots]


def of(effects: Iterable[c.Effect], *kinds: type) -> list[c.Effect]:
    """Only the effects of these kinds."""
    return [effect for effect in effects if isinstance(effect, kinds)]
