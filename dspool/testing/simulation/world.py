"""The bottom layer of a simulated world: its seed, its virtual clock, and one step of the core in it.

Rules:
    1. Everything follows from the seed: chance comes from `rng` alone, time from `now`, order from the events' queue.
    2. `step` is the only way to the core. It checks everything, then lets the layers above carry the effects out.
    3. A fault strikes by `_chance`, or by an accident that `_strikes`; once the world is calm, none does.
    4. All tables of the world are made here. What is done with them, and what an effect does, only the layers know.
"""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from itertools import count

from dspool.pool.core import commands as c, invariants
from dspool.pool.core.commands import INFINITY
from dspool.pool.core.machine import PoolCore
from dspool.pool.core.states import LeaseState
from dspool.pool.core.wakes import Wakes
from dspool.testing.simulation.books import Books, Move, MovesSeen
from dspool.testing.simulation.moments import FAULT_MOVES
from dspool.testing.simulation.parts import Caller, Kind, Process
from dspool.testing.simulation.referee import Referee
from dspool.testing.simulation.starts import Starts
from dspool.testing.simulation.swarm import draw_load, draw_options, draw_rates
from dspool.testing.simulation.trace import Trace


class World(ABC):
    """Clock, chance and step. `SimWorld` is the whole.

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
        self.safety_steps = steps
        self.now = float(self.rng.choice((0, 1000)))
        self.rates = draw_rates(self.rng)
        self.options = draw_options(self.rng)
        self.load = draw_load(self.rng)
        self.core = PoolCore(self.options, self.rng.random())
        self.processes: dict[int, Process] = {}
        self.kinds: dict[str, Kind] = {}
        """Templates, by the group whose workers are forked from them."""
        self.generation = 0
        """How often templates were renewed."""
        self.callers: dict[int, Caller] = {}
        """Those on their way, by name."""
        self.by_lease: dict[int, Caller] = {}
        self.steps = 0
        self.calm = False
        self.stopped = False
        """A law was broken: nothing more happens, whatever the callers left standing still want to give back."""
        self.injected: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.moves: set[Move] = set()
        self.fault_moves: set[str] = set()
        self.books = Books(self.core)
        self.referee = Referee(self.core, judges=checked)
        self._starts = Starts(self.core)
        self.trace = Trace(tell)
        self._moves_seen = MovesSeen(self.moves)
        self._wakes = Wakes()
        self._lease_ids = count(1)
        self._names = count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._event_ids = count(1)

    @abstractmethod
    def _perform(self, effect: c.Effect) -> None:
        """Carry an order of the core out."""

    # --- chance -------------------------------------------------------------------------------------------------------

    def _chance(self, fault: str) -> bool:
        """Whether this fault strikes now."""
        rate = self.rates[fault]
        if not rate or self.calm or self.rng.random() >= rate:
            return False
        self._strikes(fault)
        return True

    def _strikes(self, fault: str) -> None:
        """Count a fault that has struck."""
        self.injected[fault] += 1
        self.fault_moves.add(fault)

    def _note(self, what: str, *places: str) -> None:
        """Count in which states something struck."""
        for where in places:
            move = f"{what}: {where}"
            assert move in FAULT_MOVES, f"{move!r} is not in the list of moves"
            self.fault_moves.add(move)

    def _soon(self, most: float = 0.02) -> float:
        return self.now + self.rng.random() * most

    # --- the clock ----------------------------------------------------------------------------------------------------

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Let `event` happen at `when`, or later."""
        if when != INFINITY:
            heapq.heappush(self._events, (when, next(self._event_ids), event))

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

    def _shuffle_backlog(self) -> None:
        """What is overdue happens now, in any order."""
        now, overdue = self.now, [entry for entry in self._events if entry[0] <= self.now]
        self._events = [entry for entry in self._events if entry[0] > now]
        self.rng.shuffle(overdue)
        self._events += [(now, next(self._event_ids), event) for _, _, event in overdue]
        heapq.heapify(self._events)

    def _run_event(self) -> None:
        when, _, event = heapq.heappop(self._events)
        self.now = max(self.now, when)
        event()

    def _tick(self) -> None:
        self.step(c.Tick())
        upcoming = self.core.next_deadline()
        assert upcoming is None or upcoming > self.now, "a Tick leaves work undone"

    # --- one step -----------------------------------------------------------------------------------------------------

    def step(self, command: c.Command) -> None:
        """Put a command to the core, check everything, and let the world carry out the effects."""
        if self.stopped:
            return
        self.steps += 1
        core = self.core
        newcomer = None
        if isinstance(command, c.Checkout) and not command.retry and command.lease_id not in core.leases:
            newcomer = command.lease_id
        effects = core.handle(command, self.now)
        self.trace.add(self.now, command, effects)
        if self.checked:
            invariants.check(core)
            invariants.check_effects(core, effects)
            if newcomer is not None and core.leases[newcomer].state is LeaseState.QUEUED:
                invariants.check_queue_bounds(core)
            self._wakes.step(core, effects)
            self._moves_seen.step(core, effects)
            self._starts.step(command, effects)
        self.referee.step(command, effects)
        self.books.step(command, effects)
        for effect in effects:
            self._perform(effect)
