"""SimWorld: a pool's core in a world of simulated processes, callers and accidents, on a virtual clock.

Everything follows from the seed. A *swarm*: each seed switches a random subset of the faults on, at random rates, over
random options. First a *safety phase* with faults; then a *liveness phase*, in which faults stop: every call must end,
and the pool must be whole again, within bounded virtual time; then the pool is closed and must be empty.

After each step `invariants` are checked, and this module's own books, which know nothing of the core's tables:
    * each call ends exactly once, and nothing of it is left in the core;
    * a slot never has two callers, and one with an unanswered frame is never written to;
    * an answer reaches only the lease that asked;
    * a call that isn't idempotent runs at most once.

Callers are generators, written like the real data path: whatever they wait for, they may be cancelled there.
"""

from __future__ import annotations

import enum
import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Generator
from itertools import count, product
from typing import Any, NamedTuple

import msgspec

from dspool.options import PoolOptions, WorkerGroup
from dspool.pool.core import commands as c, invariants
from dspool.pool.core.machine import PoolCore
from dspool.pool.core.records import Lease
from dspool.pool.core.states import LeaseState, PoolState, SlotState, WorkerState
from dspool.types import KEEP, ExitReason, ExitReport, Remove, Skip, Verdict

INFINITY = float("inf")
TRACE_KEPT = 30
LIVENESS_S = 900.0
"""Virtual seconds in which everything must have ended once faults stop."""
_HELD = (LeaseState.CHECKING, LeaseState.GRANTED)
_OWN_ENDS: tuple[ExitReason, ...] = ("crash", "exited", "oom_suspect")
Move = tuple[enum.StrEnum, enum.StrEnum]
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
_encode = msgspec.msgpack.Encoder().encode

FAULTS: dict[str, float] = {
    # what can go wrong or come at a bad moment, and the highest rate it is switched on with
    "slow_start": 0.5,
    "failed_boot": 0.6,
    "stuck_start": 0.3,
    "late_ready": 0.5,
    "crash": 0.3,
    "crash_in_call": 0.3,
    "hang": 0.2,
    "pipe_glitch": 0.1,
    "unread": 0.2,
    "slow_exit": 0.3,
    "lost_pong": 0.4,
    "late_pong": 0.4,
    "skip": 0.5,
    "remove": 0.3,
    "remove_at_checkin": 0.2,
    "cancel": 0.4,
    "late_settle": 0.5,
    "no_settle": 0.4,
    "fat": 0.5,
    "unwell": 0.3,
    "ghost": 0.5,
    "late_tick": 0.5,
    "late_caller": 0.3,
    "clock_jump": 0.1,
    "resize": 0.3,
    "reload": 0.2,
    "recycle": 0.4,
    "pause": 0.2,
    "drain": 0.1,
    "release": 0.2,
    "early_close": 0.3,
}


class SimulationFailure(AssertionError):
    """A law was broken, or something never ended."""


class GaveUp(Exception):
    """Thrown into a caller: it is cancelled where it waits."""


class Wait(NamedTuple):
    """What a caller waits for: "grant", "read" or "sleep"; and until when."""

    kind: str
    until: float


Steps = Generator[Wait, None, str]


class Pipe:
    """A slot's pipe: what was written to the worker and not answered, and what was answered and not read."""

    __slots__ = ("answer", "frame", "left_by", "reader")

    def __init__(self) -> None:
        self.frame: int | None = None
        self.answer: int | None = None
        self.left_by: int | None = None
        self.reader: Caller | None = None


class Process:
    """A simulated worker process."""

    __slots__ = ("dead", "group", "hung", "pipes", "ready", "reason", "reported", "worker_id")

    def __init__(self, worker_id: int, group: str, slots: int) -> None:
        self.worker_id = worker_id
        self.group = group
        self.pipes = [Pipe() for _ in range(slots)]
        self.ready = self.dead = self.hung = self.reported = False
        self.reason: ExitReason = "exited"


class SessionBook:
    """What the simulator knows of a session.

    Attributes:
        place: the worker of its last grant.
        used: a call was answered there since.
        fresh: calls that left state anywhere since somebody was told of a loss.
        owed: what a lease was told for, should it never have looked.
    """

    __slots__ = ("fresh", "owed", "place", "used")

    def __init__(self) -> None:
        self.place: int | None = None
        self.used = False
        self.fresh = 0
        self.owed: dict[int, int] = {}


class Caller:
    """One call, or one lease with several runs: what it asks for, and how it went."""

    __slots__ = (
        "cancellable", "closed", "deadline", "ended", "executions", "hold_s", "idempotent", "lease_id", "name", "runs",
        "steps", "token", "waiting", "wants", "written",
    )  # fmt: skip

    def __init__(self, name: int, wants: dict[str, Any], deadline: float, *, idempotent: bool, runs: int) -> None:
        self.name = name
        self.wants = wants
        self.deadline = deadline
        self.idempotent = idempotent
        self.runs = runs
        """0: one call with its program. More: a lease without a program, and so many runs in it."""
        self.cancellable = bool(wants.get("cancellable"))
        self.lease_id = 0
        self.written = self.closed = False
        self.ended: str | None = None
        self.executions = 0
        self.steps: Steps
        self.token = 0
        self.waiting: Wait | None = None

    def __str__(self) -> str:
        kind = f"lease with {self.runs} runs" if self.runs else "call"
        return f"{kind} {self.name} (lease {self.lease_id}, written={self.written}, waits for {self.waiting})"


class SimWorld:
    """One seed's world.

    Args:
        seed: everything follows from it.
        steps: how many steps of the core the safety phase takes.
        checked: False leaves the invariants out, for the second run of a seed that only compares traces.
        tell: called with each line of the trace, as it happens.
    """

    def __init__(
        self, seed: int, steps: int = 300, *, checked: bool = True, tell: Callable[[str], None] | None = None
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.checked = checked
        self.tell = tell
        self.safety_steps = steps
        self.now = float(self.rng.choice((0, 1000)))
        self.rates = self._swarm()
        self.options = self._options()
        self.core = PoolCore(self.options, self.rng.random())
        self.wakes = invariants.Wakes()
        self.processes: dict[int, Process] = {}
        self.callers: dict[int, Caller] = {}
        self.holders: dict[tuple[int, int], int] = {}
        self.sessions: dict[str, SessionBook] = {}
        self.ran_in: dict[int, tuple[str | None, int]] = {}
        """lease_id -> its session and worker."""
        self.by_lease: dict[int, Caller] = {}
        self.steps = 0
        self.calm = False
        self.stopped = False
        """A law was broken: nothing more happens, whatever the callers left standing still want to give back."""
        self.injected: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.moves: set[Move] = set()
        self._lease_ids = count(1)
        self._names = count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._event_ids = count(1)
        self._hash = hashlib.blake2b(digest_size=16)
        self._tail: deque[tuple[float, c.Command, list[c.Effect]]] = deque(maxlen=TRACE_KEPT)
        self._seen: dict[Any, Any] = {}
        self._performers: dict[type, Callable[[Any], None]] = {
            c.Spawn: self._spawned,
            c.Stop: self._stopped,
            c.Kill: self._killed,
            c.Probe: self._probed,
            c.CancelCall: self._left_behind,
            c.Abandon: self._left_behind,
            c.Grant: self._woken,
            c.Reject: self._woken,
        }

    # --- the seed's world -----------------------------------------------------------------------------------------

    def _swarm(self) -> dict[str, float]:
        share = self.rng.choice((0.0, 0.2, 0.5, 0.8))
        return {
            fault: self.rng.uniform(0.02, highest) if self.rng.random() < share else 0.0
            for fault, highest in FAULTS.items()
        }

    def _options(self) -> PoolOptions:
        rng = self.rng
        workers: Any = rng.randint(1, 5)
        overflow = rng.choice((0, 0, 1, 2))
        if rng.random() < 0.3:
            cpu = WorkerGroup(name="cpu", workers=rng.randint(0, 3), labels=frozenset({"cpu"}), overflow=overflow)
            workers = [cpu, WorkerGroup(name="gpu", workers=rng.randint(1, 2), labels=frozenset({"gpu"}))]
            overflow = 0
        hooked = rng.random() < 0.5
        return PoolOptions(
            name="sim",
            workers=workers,
            overflow=overflow,
            overflow_linger_s=rng.choice((0.0, 1.0, 5.0)),
            lazy=rng.random() < 0.3,
            slots=rng.choice((1, 1, 1, 2, 3)),
            start_concurrency=rng.choice((1, 2, 8)),
            start_timeout_s=5.0,
            max_waiting=rng.choice((0, 3, 20, 1000)),
            max_waiting_bytes=rng.choice((500, 10_000)),
            max_restarts=rng.choice((0, 1, 3, 10)),
            restart_window_s=rng.choice((5.0, 30.0)),
            quarantine_after=rng.choice((1, 2, 3, None)),
            quarantine_s=rng.choice((0.0, 2.0, 10.0)),
            max_requests=rng.choice((None, None, 3, 20)),
            max_lifetime_s=rng.choice((None, None, 10.0)),
            max_rss_bytes=rng.choice((None, 1000)),
            ping_interval_s=rng.choice((None, 1.0, 5.0)),
            ping_timeout_s=0.5,
            ping_failures=rng.choice((1, 3)),
            grace_s=rng.choice((0.0, 0.5, 2.0)),
            cancel_grace_s=0.3,
            affinity_wait_s=rng.choice((0.0, 0.1, 0.5)),
            session_ttl_s=rng.choice((1.0, 60.0)),
            max_sessions=rng.choice((1, 3, 100)),
            max_programs=rng.choice((1, 2, 64)),
            check=_never_called if hooked else None,
        )

    def _chance(self, fault: str) -> bool:
        """Whether this fault strikes now."""
        rate = self.rates[fault]
        if not rate or self.calm or self.rng.random() >= rate:
            return False
        self.injected[fault] += 1
        return True

    def _soon(self, most: float = 0.02) -> float:
        return self.now + self.rng.random() * most

    # --- the clock ------------------------------------------------------------------------------------------------

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Let `event` happen at `when`, or later."""
        if when != INFINITY:
            heapq.heappush(self._events, (when, next(self._event_ids), event))

    def run(self) -> str:
        """The three phases. Returns the trace's hash.

        Raises:
            SimulationFailure: a law was broken, or something never ended; the message says how to see it again.
        """
        try:
            self._safety_phase()
            self._liveness_phase()
            self._closing_phase()
        except Exception as error:
            self.stopped = True
            raise SimulationFailure(self._failure(error)) from error
        return self._hash.hexdigest()

    def _safety_phase(self) -> None:
        self.step(c.Tick())
        self.at(self._soon(1.0), self._arrival)
        for fault, happens in self._accidents().items():
            if self.rates[fault]:
                self._repeat(fault, happens)
        while self.steps < self.safety_steps and self.core.state is not PoolState.CLOSED:
            self._advance()

    def _liveness_phase(self) -> None:
        """No new faults. What hangs is cut short only where nobody watches its time."""
        self.calm = True
        self.step(c.Resume())
        for group in self.core.groups.values():
            if group.size + group.overflow < 1:
                self.step(c.Resize(group.name, 1))
        for caller in self.callers.values():
            self._unhang(caller)
        until = self.now + LIVENESS_S
        while self.callers:
            self._require_before(until)
            self._advance()
        if self.core.state is not PoolState.OPEN:
            return
        while (missing := self._not_whole()) is not None:
            self._require_before(until, missing)
            self._advance()
        self.now += self.options.quarantine_s  # whatever is in quarantine gets its trial now
        for group, program in product(self.core.groups.values(), ("a", "b", "evil")):
            self._final_call(group.options.labels, program)
            while self.callers:
                self._require_before(until + LIVENESS_S)
                self._advance()

    def _closing_phase(self) -> None:
        if self.core.state is PoolState.OPEN and self.rng.random() < 0.5:
            for _ in range(3):
                self._arrival_of_one()
        if self.core.state is not PoolState.CLOSED:
            self.step(c.Close(self.now + self.rng.choice((0.0, 0.5, 3.0))))
        until = self.now + LIVENESS_S
        while self.core.state is not PoolState.CLOSED or self.callers:
            self._require_before(until)
            self._advance()
        assert all(process.reported for process in self.processes.values()), "a process outlives its pool"
        assert not self.core.leases, f"leases {sorted(self.core.leases)} outlive their callers"
        left = [session for session in self.core.sessions.table.values() if session.in_use]
        assert not left, "a session is in use though every call has ended"

    def _advance(self) -> None:
        """The next event, or a Tick where the core wants one first."""
        deadline = self.core.next_deadline()
        event_at = self._events[0][0] if self._events else INFINITY
        if deadline is not None and deadline <= event_at:
            if self._chance("late_tick"):
                self.at(deadline + self.rng.random(), self._tick)
                if self._events[0][0] < INFINITY:
                    self._run_event()
                return
            self.now = max(self.now, deadline)
            self._tick()
        else:
            assert self._events, "nothing will ever happen again"
            self._run_event()

    def _run_event(self) -> None:
        when, _, event = heapq.heappop(self._events)
        self.now = max(self.now, when)
        event()

    def _tick(self) -> None:
        self.step(c.Tick())
        upcoming = self.core.next_deadline()
        assert upcoming is None or upcoming > self.now, "a Tick leaves work undone"

    def _require_before(self, until: float, what: str | None = None) -> None:
        if self.now > until:
            pending = what or "; ".join(str(caller) for caller in self.callers.values()) or self.core.state.value
            raise AssertionError(f"still pending {LIVENESS_S:g} virtual seconds after the last fault: {pending}")

    def _not_whole(self) -> str | None:
        """What keeps the pool from being as it was meant to be; None where it is."""
        for group in self.core.groups.values():
            wanted = 0 if self.options.lazy else group.size
            if group.ready < wanted or group.starting or group.draining or group.stopping:
                counts = f"{group.starting} starting, {group.ready} ready, {group.draining} draining"
                return f"group {group.name}: {wanted} wanted, {counts}, {group.stopping} stopping"
            if group.ready > group.size:
                return f"group {group.name}: {group.ready} ready, {group.size} wanted"
            if group.breaker.state == "open":
                return f"group {group.name}: its breaker is open"
            if group.due and self.options.max_lifetime_s is None:
                return f"group {group.name}: workers {list(group.due)} are due for ever"
        alive = [process for process in self.processes.values() if not process.reported]
        if len(alive) != len(self.core.workers):
            return f"{len(alive)} processes live, {len(self.core.workers)} workers are known"
        return None

    # --- one step -------------------------------------------------------------------------------------------------

    def step(self, command: c.Command) -> None:
        """Put a command to the core, check everything, and let the world carry out the effects."""
        if self.stopped:
            return
        self.steps += 1
        effects = self.core.handle(command, self.now)
        self._tail.append((self.now, command, effects))
        if self.tell is not None:
            self.tell(_line(self.now, command, effects))
        self._hash.update(_encode((self.now, _tagged(command), [_tagged(effect) for effect in effects])))
        if self.checked:
            invariants.check(self.core)
            invariants.check_effects(self.core, effects)
            if isinstance(command, c.Checkout) and self.core.leases[command.lease_id].state is LeaseState.QUEUED:
                invariants.check_queue_bounds(self.core)
            self.wakes.step(self.core, effects)
            self._note_moves(effects)
        self._book(command, effects)
        self._book_sessions(command, effects)
        for effect in effects:
            perform = self._performers.get(type(effect))
            if perform is not None:
                perform(effect)

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
            if isinstance(effect, c.Report) and effect.event == "lease.expired":
                over.add(effect.fields["lease_id"])
            elif isinstance(effect, (c.Abandon, c.CancelCall)):
                left[effect.lease_id] = effect.worker_id, effect.slot
        if over:
            self._let_go(over, left)
        for effect in effects:
            if isinstance(effect, c.Grant):
                self._let_go({effect.lease_id}, {})
                lease = self.core.leases[effect.lease_id]
                assert lease.worker_id is not None
                key = lease.worker_id, lease.slot
                assert key not in holders, f"slot {key} has two callers: leases {holders[key]} and {lease.lease_id}"
                holders[key] = lease.lease_id

    def _book_sessions(self, command: c.Command, effects: list[c.Effect]) -> None:
        """State that sessions keep in workers: whoever runs elsewhere after it is told, and told once."""
        if isinstance(command, (c.Checkin, c.RunEnded, c.Cancel, c.CheckoutVerdict)):
            name, worker_id = self.ran_in.get(command.lease_id, (None, 0))
            if name is not None:
                self._session_ran(command, name, worker_id)
        for effect in effects:
            if isinstance(effect, c.Report) and effect.event == "lease.expired":
                name, worker_id = self.ran_in.get(effect.fields["lease_id"], (None, 0))
                if name is not None:
                    self._session_ran(c.Cancel(effect.fields["lease_id"], True), name, worker_id)
            if not isinstance(effect, (c.Grant, c.Reject)):
                continue
            lease = self.core.leases[effect.lease_id]
            if lease.session is None:
                continue
            state = self.sessions.setdefault(lease.session, SessionBook())
            told = lease.session_restarted
            if lease.refusal is not None:
                told = lease.refusal.code == "SessionLost"
                state.place = None if told else state.place
            else:
                moved = state.place not in (None, lease.worker_id)
                assert told or not (moved and state.used), f"lease {lease.lease_id} isn't told that its session moved"
                assert lease.worker_id is not None
                self.ran_in[lease.lease_id] = lease.session, lease.worker_id
                state.used = state.used and not moved
                state.place = lease.worker_id
            if told:
                assert state.fresh, (
                    f"lease {lease.lease_id} is told of a loss, and there was none, or it was told before"
                )
                state.owed[lease.lease_id], state.fresh = state.fresh, 0
                state.used = False
        for name in [name for name in self.sessions if name not in self.core.sessions.table]:
            del self.sessions[name]

    def _session_ran(
        self, command: c.Checkin | c.RunEnded | c.Cancel | c.CheckoutVerdict, name: str, worker_id: int
    ) -> None:
        lease = self.core.leases.get(command.lease_id)
        kept = lease is not None and lease.state in _HELD and lease.worker_id == worker_id
        if not kept:
            del self.ran_in[command.lease_id]
        state = self.sessions.get(name)
        if state is None:
            return
        if isinstance(command, (c.Checkin, c.RunEnded)):
            if command.outcome in ("ok", "failed"):
                state.fresh += 1
                state.used = state.used or state.place == worker_id
        elif isinstance(command, c.Cancel) and command.written:
            state.fresh += 1
        elif not kept:  # it never looked at what it was told: another is told instead
            state.fresh += state.owed.pop(command.lease_id, 0)

    def _let_go(self, over: set[int], left: dict[int, tuple[int, int]]) -> None:
        for key, lease_id in list(self.holders.items()):
            if lease_id in over:
                del self.holders[key]
                if left.get(lease_id) == key:
                    self.holders[key] = -lease_id

    def _note_moves(self, effects: list[c.Effect]) -> None:
        """Which moves of the state tables were seen. Of two at once only the sum is, and that is not a legal move."""
        now: dict[Any, Any] = {0: self.core.state}
        for worker_id, worker in self.core.workers.items():
            now[worker_id, -1] = worker.state
            for index, slot in enumerate(worker.slots):
                now[worker_id, index] = slot.state
        for lease_id, lease in self.core.leases.items():
            now[-lease_id] = lease.state
        before, self._seen = self._seen, now
        for key, new in now.items():
            if before.get(key) is not new:
                self.moves.add((before.get(key) or _BIRTH[type(new)], new))
        for key, old in before.items():
            if key not in now:
                self.moves.add((old, _DEATH[type(old)]))
        for effect in effects:
            if type(effect) is c.Stop:
                self.moves |= _STOPPED

    def _failure(self, error: BaseException) -> str:
        lines = [_line(*entry) for entry in self._tail]
        replay = f"python -m dspool.testing.simulator --seed {self.seed} --steps {self.safety_steps} --verbose"
        phase = "liveness" if self.calm else "safety"
        name = type(error).__name__
        said = f"seed {self.seed}, step {self.steps}, {phase} phase, at {self.now:.6f}: {name}: {error}"
        return "\n".join([said, *lines, f"replay: {replay}"])

    # --- accidents ------------------------------------------------------------------------------------------------

    def _repeat(self, fault: str, happens: Callable[[], None]) -> None:
        """Let it happen again and again, at its rate, until the faults stop."""

        def strike() -> None:
            if not self.calm:
                self.injected[fault] += 1
                happens()
                self._repeat(fault, happens)

        self.at(self.now + self.rng.expovariate(2.0 * self.rates[fault]), strike)

    def _accidents(self) -> dict[str, Callable[[], None]]:
        rng, options = self.rng, self.options
        groups = [group.name for group in options.groups]

        def one_of_the_living() -> Process | None:
            alive = [process for process in self.processes.values() if not process.dead]
            return rng.choice(alive) if alive else None

        def crash() -> None:
            process = one_of_the_living()
            if process is not None:
                self._die(process, rng.choice(_OWN_ENDS) if process.ready else "boot_error")

        def unwell() -> None:
            self.step(c.WorkerUnwell(self._some_worker(), rng.choice(("protocol_error", "killed")), "simulated"))

        def pause() -> None:
            self.step(c.Pause())
            self.at(self._soon(3.0), lambda: self.step(c.Resume()))

        def drain() -> None:
            self.step(c.Drain())
            self.at(self._soon(3.0), lambda: self.step(c.Resume()))

        def jump() -> None:
            self.now += rng.choice((0.5, 5.0, 50.0))

        def early_close() -> None:
            if self.steps > self.safety_steps // 2:
                self.step(c.Close(self.now + rng.choice((0.0, 0.5, 3.0, INFINITY))))

        def fat() -> None:
            self.step(c.RssSampled(self._some_worker(), rng.choice((100, 950, 2000))))

        return {
            "crash": crash,
            "unwell": unwell,
            "pause": pause,
            "drain": drain,
            "clock_jump": jump,
            "early_close": early_close,
            "fat": fat,
            "ghost": self._ghost,
            "resize": lambda: self.step(c.Resize(rng.choice([*groups, "nobody"]), rng.randint(0, 5))),
            "reload": lambda: self.step(c.Reload()),
            "recycle": lambda: self.step(c.Recycle(self._some_worker())),
            "release": lambda: self.step(c.Release(rng.choice(("a", "b", "evil")))),
        }

    def _some_worker(self) -> int:
        """A worker, often one that is gone or never was."""
        known = sorted(self.core.workers)
        return self.rng.choice(known) if known and self.rng.random() < 0.8 else self.rng.randint(0, 50)

    def _ghost(self) -> None:
        """A late or doubled event about something that is gone, or that is not so."""
        rng = self.rng
        gone = [process.worker_id for process in self.processes.values() if process.reported] or [0]
        ghost, stranger = rng.choice(gone), rng.choice([*self.core.leases, 0, 10**9])
        ready = [worker_id for worker_id, worker in self.core.workers.items() if worker.ready_at is not None] or [ghost]
        over = next(self._lease_ids)
        self.step(
            rng.choice(
                (
                    c.WorkerReady(ghost),
                    c.WorkerReady(rng.choice(ready)),
                    c.WorkerExited(ghost, ExitReport(worker_id=ghost, pid=None, reason="crash")),
                    c.WorkerUnwell(ghost, "hung"),
                    c.ProbeAnswered(ghost, True),
                    c.RssSampled(ghost, 10**6),
                    c.Recycle(ghost),
                    c.SlotSettled(ghost, 0, 1),
                    c.SlotSettled(rng.choice(ready), rng.choice((-1, 0, 99)), 10**9),
                    c.Checkin(over),
                    c.Cancel(over, True),
                    c.CheckoutVerdict(over, Remove("ghost")),
                    c.RunStarted(over, "a"),
                    c.RunEnded(over, "ok"),
                    c.Checkout(stranger, stranger) if stranger in self.core.leases else c.Tick(),
                )
            )
        )

    # --- processes ------------------------------------------------------------------------------------------------

    def _spawned(self, effect: c.Spawn) -> None:
        assert effect.worker_id not in self.processes, f"worker {effect.worker_id} was started twice"
        process = self.processes[effect.worker_id] = Process(effect.worker_id, effect.group, self.options.slots)
        if self._chance("failed_boot"):
            self.at(self._soon(1.0), lambda: self._die(process, "boot_error"))
        elif self._chance("stuck_start"):
            process.hung = True
        else:
            slow = self._chance("slow_start")
            self.at(self._soon(8.0 if slow else 0.3), lambda: self._boot(process))

    def _boot(self, process: Process) -> None:
        if process.dead:
            if self._chance("late_ready"):
                self.step(c.WorkerReady(process.worker_id))
            return
        process.ready = True
        self.step(c.WorkerReady(process.worker_id))

    def _stopped(self, effect: c.Stop) -> None:
        process = self.processes[effect.worker_id]
        for index, pipe in enumerate(process.pipes):
            assert pipe.frame is None, f"{effect}: a call is still running in slot {index}"
        grace_s = max(0.0, effect.deadline - self.now)
        slow = process.hung or self._chance("slow_exit")
        when = effect.deadline + 0.01 if slow else self._soon(min(0.1, grace_s))
        self.at(when, lambda: self._die(process, effect.reason))

    def _killed(self, effect: c.Kill) -> None:
        process = self.processes.get(effect.worker_id)
        if process is not None:
            reason: ExitReason = effect.reason or "exited"
            when = self._soon(4 * self.options.grace_s + 1) if self._chance("slow_exit") else self._soon()
            self.at(when, lambda: self._die(process, reason))

    def _die(self, process: Process, reason: ExitReason) -> None:
        """The process is dead from now on; the core hears of it a little later, once it is reaped."""
        if process.dead:
            return
        process.dead, process.reason = True, reason
        for pipe in process.pipes:
            if pipe.reader is not None:
                self._wake(pipe.reader, "read")
        self.at(self._soon(0.05), lambda: self._reap(process))

    def _reap(self, process: Process) -> None:
        process.reported = True
        report = ExitReport(worker_id=process.worker_id, pid=1, reason=process.reason)
        self.step(c.WorkerExited(process.worker_id, report))

    def _probed(self, effect: c.Probe) -> None:
        process = self.processes[effect.worker_id]
        lost = process.hung or process.dead or self._chance("lost_pong")
        answer = c.ProbeAnswered(effect.worker_id, not lost)
        when = self.now + self.options.ping_timeout_s if lost else self._soon()
        self.at(when, lambda: self.step(answer))
        if lost and self._chance("late_pong"):
            self.at(when + 0.1, lambda: self.step(c.ProbeAnswered(effect.worker_id, True)))

    def _answered(self, process: Process, pipe: Pipe, lease_id: int) -> None:
        """The worker has written its answer into the pipe."""
        if process.dead or pipe.frame != lease_id:
            return
        pipe.frame, pipe.answer = None, lease_id
        if pipe.left_by is not None:
            self._settle_later(process, pipe)
        elif pipe.reader is not None:
            self._wake(pipe.reader, "read")

    def _left_behind(self, effect: c.Abandon | c.CancelCall) -> None:
        """The control plane reads this slot from now on."""
        process = self.processes[effect.worker_id]
        pipe = process.pipes[effect.slot]
        assert pipe.frame in (None, effect.lease_id), f"{effect}: lease {pipe.frame} is written there"
        pipe.left_by = effect.lease_id
        if pipe.answer is not None:
            self._settle_later(process, pipe)
        elif pipe.frame is None:
            # The hold of a lease ran out between two runs: there is no answer to come.
            return
        elif isinstance(effect, c.CancelCall) and not self._chance("no_settle"):
            when = self._soon(0.6 if self._chance("late_settle") else 0.05)
            self.at(when, lambda: self._answered(process, pipe, effect.lease_id))

    def _settle_later(self, process: Process, pipe: Pipe) -> None:
        lease_id = pipe.answer
        assert lease_id == pipe.left_by, f"the answer to lease {lease_id} is read for lease {pipe.left_by}"

        def settle() -> None:
            if not process.dead:
                pipe.answer = pipe.left_by = None
                assert lease_id is not None
                self.step(c.SlotSettled(process.worker_id, process.pipes.index(pipe), lease_id))

        self.at(self._soon(), settle)

    # --- callers --------------------------------------------------------------------------------------------------

    def _arrival(self) -> None:
        if self.calm:
            return
        burst = self.rng.choice((1, 1, 1, 2, 6))
        for _ in range(burst):
            self._arrival_of_one()
        self.at(self.now + self.rng.expovariate(8.0) * burst, self._arrival)

    def _arrival_of_one(self) -> None:
        rng = self.rng
        runs = rng.choice((0, 0, 0, 0, 1, 3))
        wants: dict[str, Any] = {"program": None if runs else rng.choice(("a", "b", "evil"))}
        if rng.random() < 0.4:
            wants["session"] = rng.choice(("s", "t", "u", "v"))
            wants["affinity"] = rng.choice(("hint", "hint", "strict", "strict_fail_fast"))
            wants["session_lost_is_error"] = rng.random() < 0.3
        if rng.random() < 0.2:
            wants["require"] = frozenset({rng.choice(("cpu", "gpu"))})
        if rng.random() < 0.2:
            wants["priority"] = rng.randint(-1, 1)
        if rng.random() < 0.2:
            wants["hold_s"] = rng.choice((0.05, 0.5, 3.0))
        wants["size_bytes"] = rng.choice((0, 10, 300))
        wants["cancellable"] = rng.random() < 0.3
        patience = rng.choice((0.0, 0.1, 0.5, 2.0, 2.0, 20.0, INFINITY))
        self._start(wants, self.now + patience, runs=runs, idempotent=rng.random() < 0.3)

    def _final_call(self, labels: frozenset[str], program: str) -> None:
        """Once the pool is whole again it serves every program in every group."""
        self._start({"program": program, "require": labels}, self.now + 60.0, runs=0, idempotent=False, must="ok")

    def _start(
        self, wants: dict[str, Any], deadline: float, *, runs: int, idempotent: bool, must: str | None = None
    ) -> None:
        caller = Caller(next(self._names), wants, deadline, idempotent=idempotent, runs=runs)
        self.callers[caller.name] = caller
        caller.steps = self._tries(caller, must)
        self._resume(caller, 0)
        if self._chance("cancel"):
            self.at(self._soon(self.rng.choice((0.001, 0.05, 1.0))), lambda: self._cancel(caller))

    def _cancel(self, caller: Caller) -> None:
        if caller.ended is None:
            caller.token += 1
            self._continue(caller, lambda: caller.steps.throw(GaveUp()))

    def _resume(self, caller: Caller, token: int) -> None:
        if caller.ended is None and caller.token == token:
            caller.token += 1
            self._continue(caller, lambda: next(caller.steps))

    def _continue(self, caller: Caller, go: Callable[[], Wait]) -> None:
        try:
            caller.waiting = go()
        except GaveUp:
            self._ended(caller, "cancelled")
        except StopIteration as stop:
            self._ended(caller, stop.value)
        else:
            token, until = caller.token, caller.waiting.until
            if until != INFINITY and self._chance("late_caller"):
                until += self.rng.random()
            self.at(until, lambda: self._resume(caller, token))

    def _ended(self, caller: Caller, outcome: str) -> None:
        assert caller.ended is None, f"{caller} ended twice: {caller.ended}, {outcome}"
        assert caller.lease_id not in self.core.leases, f"{caller} ended and its lease is still there"
        caller.ended = outcome
        self.outcomes[outcome] += 1
        del self.callers[caller.name]

    def _wake(self, caller: Caller, kind: str) -> None:
        """Wake a caller that waits for this, after a moment in which anything may happen."""
        if caller.waiting is not None and caller.waiting.kind == kind:
            token = caller.token
            self.at(self._soon(self.rng.choice((0.0, 0.0, 0.02))), lambda: self._resume(caller, token))

    def _woken(self, effect: c.Grant | c.Reject) -> None:
        caller = self.by_lease.get(effect.lease_id)
        if caller is not None:
            self._wake(caller, "grant")

    def _unhang(self, caller: Caller) -> None:
        """A call that hangs and has no deadline would hang for ever: that is its caller's choice, not a bug."""
        lease = self.core.leases.get(caller.lease_id)
        if lease is None or lease.worker_id is None or caller.deadline != INFINITY:
            return
        process = self.processes[lease.worker_id]
        pipe = process.pipes[lease.slot]
        if pipe.frame == lease.lease_id:
            self.at(self._soon(), lambda: self._answered(process, pipe, lease.lease_id))

    # --- the way of a call, as in the real data path ------------------------------------------------------------------

    def _tries(self, caller: Caller, must: str | None) -> Steps:
        call_id, tries = 0, 0
        while True:
            lease_id = next(self._lease_ids)
            call_id = call_id or lease_id
            caller.lease_id, caller.written, caller.closed = lease_id, False, False
            self.by_lease[lease_id] = caller
            outcome = yield from self._attempt(caller, call_id, tries)
            if outcome != "lost" or not caller.idempotent or tries >= 3 or self.now >= caller.deadline:
                break
            tries += 1
            caller.executions = 0
        if must is not None and (outcome != "PoolSaturated" or self.options.max_waiting):
            assert outcome == must, f"{caller} should end {must}, and ended {outcome}"
        return outcome

    def _attempt(self, caller: Caller, call_id: int, tries: int) -> Steps:
        lease_id = caller.lease_id
        try:
            self.step(c.Checkout(lease_id, call_id, deadline=caller.deadline, retry=tries > 0, **caller.wants))
            lease = self.core.leases[lease_id]
            while True:
                refused = yield from self._acquire(caller, lease)
                if refused is not None:
                    return refused
                if not caller.runs:
                    outcome = yield from self._run(caller, lease)
                else:
                    outcome = yield from self._runs(caller, lease)
                if outcome != "moved":
                    return outcome
        finally:
            if not caller.closed:
                self.step(c.Cancel(lease_id, caller.written))
                if self.rng.random() < 0.05:
                    self.step(c.Cancel(lease_id, True))
            del self.by_lease[lease_id]

    def _acquire(self, caller: Caller, lease: Lease) -> Generator[Wait, None, str | None]:
        """Until a worker suits. Returns how the caller was refused, or None."""
        while True:
            while lease.state is LeaseState.QUEUED:
                yield Wait("grant", caller.deadline)
                if lease.state is LeaseState.QUEUED and self.now >= caller.deadline:
                    caller.closed = True
                    self.step(c.Cancel(lease.lease_id, False, "timeout"))
                    return "queue_timeout"
            if lease.state is LeaseState.CLOSED:
                return lease.refusal.code if lease.refusal is not None else "expired"
            process = self.processes[lease.worker_id or 0]
            if process.dead or self._chance("unread"):
                self._verdict(lease, Remove("its pipe ended"), died=process.dead)
                continue
            if lease.state is LeaseState.CHECKING:
                yield Wait("sleep", self._soon(0.05))
                verdict: Verdict = KEEP
                if self._chance("skip"):
                    verdict = Skip("not for this call")
                elif self._chance("remove"):
                    verdict = Remove("the hook said so")
                self._verdict(lease, verdict)
                continue
            return None

    def _verdict(self, lease: Lease, verdict: Verdict, *, died: bool = False) -> None:
        """A verdict may come too late: the lease is over meanwhile."""
        self.step(c.CheckoutVerdict(lease.lease_id, verdict, died))

    def _send(self, caller: Caller, lease: Lease) -> Pipe | None:
        """Write the request. None: the pipe was closed before anything was read from it."""
        process = self.processes[lease.worker_id or 0]
        pipe = process.pipes[lease.slot]
        if process.dead:
            return None
        assert process.ready, f"{caller} writes to worker {process.worker_id}, which is not ready"
        assert pipe.frame is None, f"{caller} writes to a slot that still owes lease {pipe.frame} an answer (law 5)"
        assert pipe.answer is None, f"{caller} writes to a slot that holds the answer to lease {pipe.answer} (law 5)"
        holder = self.holders.get((process.worker_id, lease.slot))
        assert holder == lease.lease_id, f"{caller} writes to a slot of lease {holder}"
        caller.executions += 1
        assert caller.executions == 1 or caller.runs, f"{caller} runs {caller.executions} times"
        pipe.frame = lease.lease_id
        lease_id = lease.lease_id
        if self._chance("hang"):
            process.hung = self.rng.random() < 0.3
        elif lease.program == "evil" and self._chance("crash_in_call"):
            self.at(self._soon(0.1), lambda: self._die(process, "crash"))
        else:
            took = self.rng.choice((0.001, 0.05, 0.3, 3.0))
            self.at(self._soon(took), lambda: self._answered(process, pipe, lease_id))
        return pipe

    def _exchange(self, caller: Caller, lease: Lease) -> Steps:
        """Write, and read the answer: "ok", "unwritten", "lost" or "timeout"."""
        process = self.processes[lease.worker_id or 0]
        pipe = self._send(caller, lease)
        if pipe is None:
            return "unwritten"
        pipe.reader = caller
        try:
            while pipe.answer is None and not process.dead:
                if self._chance("pipe_glitch"):
                    return "lost"
                if self.now >= caller.deadline:
                    return "timeout"
                yield Wait("read", caller.deadline)
        finally:
            pipe.reader = None
        if pipe.answer is None:
            return "lost"
        assert pipe.answer == lease.lease_id, f"{caller} reads the answer to lease {pipe.answer}"
        pipe.answer = None
        return "ok"

    def _run(self, caller: Caller, lease: Lease) -> Steps:
        caller.written = True
        outcome = yield from self._exchange(caller, lease)
        if outcome == "unwritten":
            caller.written = False
            self._verdict(lease, Remove("it ended before it had read the call"), died=True)
            return "moved"
        caller.closed = True
        if outcome == "timeout":
            self.step(c.Cancel(lease.lease_id, True, "timeout"))
        elif outcome == "lost":
            self.step(c.Checkin(lease.lease_id, "lost"))
        else:
            verdict: Verdict = Remove("leaky") if self._chance("remove_at_checkin") else KEEP
            failed = self.rng.random() < 0.1
            self.step(c.Checkin(lease.lease_id, "failed" if failed else "ok", verdict))
        return outcome

    def _runs(self, caller: Caller, lease: Lease) -> Steps:
        """A lease without a program: some runs, and pauses between them."""
        for _ in range(caller.runs):
            self.step(c.RunStarted(lease.lease_id, self.rng.choice(("a", "b", "evil"))))
            if lease.refusal is not None:
                break
            if lease.state is not LeaseState.GRANTED:
                return "expired"
            caller.written = True
            outcome = yield from self._exchange(caller, lease)
            caller.written = False
            if outcome == "timeout":
                caller.closed = True
                self.step(c.Cancel(lease.lease_id, True, "timeout"))
                return outcome
            if outcome != "ok":
                caller.closed = True
                self.step(c.Checkin(lease.lease_id, "lost"))
                return "lost"
            self.step(c.RunEnded(lease.lease_id, self.rng.choice(("ok", "ok", "failed"))))
            yield Wait("sleep", self._soon(self.rng.choice((0.01, 0.5))))
        caller.closed = True
        removed = self._chance("remove_at_checkin")
        self.step(c.Checkin(lease.lease_id, "none", Remove("leaky") if removed else KEEP))
        return "ok"


def _never_called(*_: object) -> Verdict:
    raise AssertionError("the simulator's callers give their verdicts themselves")


def _tagged(struct: Any) -> tuple[str, Any]:
    return type(struct).__name__, struct


def _line(now: float, command: c.Command, effects: list[c.Effect]) -> str:
    said = ", ".join(_short(effect) for effect in effects)
    return f"{now:12.6f}  {_short(command)}" + (f"  ->  {said}" if said else "")


def _short(struct: Any) -> str:
    """A command or effect without the fields that have their default values."""
    if isinstance(struct, c.Report):
        fields = {name: value for name, value in struct.fields.items() if name != "report"}
        return f"{struct.event}{fields}"
    parts = []
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if isinstance(value, ExitReport):
            value = value.reason
        if value != field.default:
            parts.append(f"{field.name}={value!r}")
    return f"{type(struct).__name__}({', '.join(parts)})"
