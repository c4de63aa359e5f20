"""The core by itself: what a checkout and a checkin cost before any process, pipe or thread has its share.

Its workers are ready because it was told so. The commands are those that a driver gives it for a call.
"""

from __future__ import annotations

import itertools
import time
from collections import deque

from dspool.options import PoolOptions
from dspool.pool.core import commands as c
from dspool.pool.core.machine import PoolCore


class BareCore:
    """A core with so many workers, all ready, and so many callers that wait because every slot is leased.

    Args:
        workers: its workers, each with one slot.
        waiting: callers in the queue at any time; 0 leaves all workers idle.
    """

    def __init__(self, workers: int, waiting: int) -> None:
        options = PoolOptions(workers=workers, start_concurrency=workers, max_waiting=max(1, waiting + 1))
        self._core = PoolCore(options)
        self._ids = itertools.count(1)
        self._leased: deque[int] = deque()
        self._waiting = waiting
        effects = self._core.handle(c.Tick(), time.monotonic())
        for effect in effects:
            if isinstance(effect, c.Spawn):
                self._core.handle(c.WorkerReady(effect.worker_id), time.monotonic())
        if waiting:
            for _ in range(workers + waiting):
                self._check_out()

    def _check_out(self) -> None:
        """One more caller; who is granted something now holds it."""
        lease_id = next(self._ids)
        command = c.Checkout(lease_id, lease_id, program="echo", deadline=time.monotonic() + 120.0)
        self._grants(self._core.handle(command, time.monotonic()))

    def _grants(self, effects: list[c.Effect]) -> None:
        self._leased += [effect.lease_id for effect in effects if type(effect) is c.Grant]

    def cycle(self) -> None:
        """One call's steps: somebody comes, and the one who has held a slot longest gives it back.

        Where callers wait, the slot that is given back goes to the first of them, and the new one stands last.
        """
        self._check_out()
        self._grants(self._core.handle(c.Checkin(self._leased.popleft()), time.monotonic()))

    def time_cycles(self, cycles: int) -> list[float]:
        """Each cycle's seconds.

        Raises:
            RuntimeError: a caller was granted nothing, or the queue isn't as long as it should be.
        """
        times = []
        for _ in range(cycles):
            began = time.perf_counter()
            self.cycle()
            times.append(time.perf_counter() - began)
        if self._core.queue.count != self._waiting:
            raise RuntimeError(f"{self._core.queue.count} callers wait, {self._waiting} should")
        return times
