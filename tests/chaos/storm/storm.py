"""A storm: calls and kills at once, in waves, until there were enough of both.

Every other wave has fewer callers than workers. Each ends with a kill under load and one without calls, and after each
of them the pool has to come back to full strength: as many workers ready as it should have, none of them a killed one.
The killer keeps step with the calls, so that a fast machine sees as many kills for each call as a slow one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dspool.types import WorkerInfo
from tests.chaos.finding import Plan
from tests.chaos.premises import Premises
from tests.chaos.storm.books import Books
from tests.chaos.storm.killer import Killer
from tests.chaos.watch import Watch

WORKERS = 8
CALLERS = 16
FEW_CALLERS = 5
"""Fewer than workers, so that some of these are idle."""
TIMEOUT_S = 60.0
"""Of each call: a call that ends by it is a call whose worker nobody replaced."""
OPTIONS: dict[str, Any] = {"workers": WORKERS, "max_retries": 100, "max_restarts": 1_000_000}
HEAL_GOAL_MS = 250
NEW_TEMPLATE_S = 2.0
PATIENCE_S = 60.0
WAVE = 50
_WORKER_MOMENTS = ("at_random", "busy", "starting", "stopped")
_LONGEST_PAUSE_S = 0.05
"""The killer goes on after so long, whatever the calls do."""


@dataclass(frozen=True, slots=True)
class Force:
    """How strong a storm is."""

    kills: int
    calls: int


class Storm:
    """One storm over one pool.

    Args:
        plan: seed and progress.
        force: how many calls and kills.
        premises: where the pool is.
        workers: gives the pool's workers.
        watch: gets the pool's events.

    Attributes:
        healed_ms: from the last kill of each wave to full strength, with calls going on.
        healed_idle_ms: the same without calls.
        healed_new_template_ms: either, where the template was killed shortly before and had to be started first.
        weak: how often it did not come back to full strength at all.
    """

    def __init__(
        self, plan: Plan, force: Force, premises: Premises, workers: Callable[[], list[WorkerInfo]], watch: Watch
    ) -> None:
        folder = premises.folder / f"ledger-{time.monotonic_ns()}"
        folder.mkdir()
        self.books = Books(plan.seed, folder)
        self.killer = Killer(plan.seed + 1, premises, workers)
        self.over = threading.Event()
        """Set when callers should end."""
        self._few, self._many = threading.Event(), threading.Event()
        self.healed_ms: list[float] = []
        self.healed_idle_ms: list[float] = []
        self.healed_new_template_ms: list[float] = []
        self.weak = 0
        self._plan, self._force, self._workers, self._watch = plan, force, workers, watch

    def gate(self, number: int) -> threading.Event:
        """What caller `number` waits for before each call: a few call in every wave, all of them in every other."""
        return self._few if number < FEW_CALLERS else self._many

    def rage(self) -> None:
        """Kill until it is enough; then let the callers end."""
        try:
            for wave in itertools.count():
                if self._enough() or self.over.is_set():
                    return
                self._wave(crowded=wave % 2 == 0)
        finally:
            self._few.set()
            self._many.set()
            self.over.set()

    def _enough(self) -> bool:
        return self.killer.count >= self._force.kills and self.books.resolved() >= self._force.calls

    def _wave(self, *, crowded: bool) -> None:
        self._few.set()
        if crowded:
            self._many.set()
        per_kill = max(1, self._force.calls // self._force.kills)
        for _ in range(min(WAVE, max(5, self._force.kills // 4))):
            if self.over.is_set():
                return
            self.books.await_calls(self.books.resolved() + per_kill, _LONGEST_PAUSE_S)
            self.killer.strike()
            self._say()
        self._last_kill(self.healed_ms)
        self._few.clear()
        self._many.clear()
        while self.books.resolved() < len(self.books.made) and not self.over.is_set():
            self.books.await_calls(len(self.books.made), _LONGEST_PAUSE_S)
        self._last_kill(self.healed_idle_ms)

    def _last_kill(self, healed_ms: list[float]) -> None:
        """Kill once more when the pool is whole, and see how long it takes until it is whole again."""
        self._strength()
        if not self.killer.strike(*_WORKER_MOMENTS):
            return
        if self._strength():
            ready = max(self.killer.last_kill, self._watch.last.get("worker.ready", 0.0))
            recently = self.killer.last_kill - self.killer.last_template_kill < NEW_TEMPLATE_S
            healed_ms = self.healed_new_template_ms if recently else healed_ms
            healed_ms.append((ready - self.killer.last_kill) * 1e3)

    def _strength(self) -> bool:
        """Wait for full strength."""
        strong = self._watch.until(self._whole, PATIENCE_S)
        self.weak += not strong
        return strong

    def _whole(self) -> bool:
        ready = [worker.pid for worker in self._workers() if worker.state in ("idle", "busy")]
        return len(ready) >= WORKERS and not set(ready) & set(self.killer.recent)

    def _say(self) -> None:
        self._plan.say(
            f"{self.killer.count:,} of {self._force.kills:,} kills, "
            f"{self.books.resolved():,} of {self._force.calls:,} calls"
        )
