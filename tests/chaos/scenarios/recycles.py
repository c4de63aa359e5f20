"""Workers replaced after every ten calls, thousands of times: nothing piles up in the manager or around it.

Eight threads call as fast as workers are replaced: no more than eighty calls ahead of those of workers that have
ended. What there is of processes, zombies, descriptors, threads and temporary files is compared twice, each time with
nothing under way: with the pool open, before the first call and after the last, and without it. The memory of manager
and template is sampled all the way; its slope is that of the line that fits the second half of the samples best.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import dspool
from tests.chaos.crowd import Crowd
from tests.chaos.finding import Finding, Plan
from tests.chaos.premises import Premises, resident_bytes
from tests.chaos.programs import double
from tests.chaos.watch import Watch

WORKERS = 4
CALLERS = 8
MAX_REQUESTS = 10
PATIENCE_S = 60.0
GROWTH_GOAL_BYTES = 2**20
"""What 10,000 recycles may add to the manager's memory, by the slope."""


class _Callers:
    """Callers that go on until there were enough calls and enough recycles.

    Attributes:
        done: calls of each caller, in a place of its own, so that nobody waits for anybody.
        watch: the pool's events.
    """

    def __init__(self, calls: int, recycles: int) -> None:
        self.calls, self.recycles = calls, recycles
        self.done = [0] * CALLERS
        self.wrong = self.failed = 0
        self.watch = Watch()
        self._permits = threading.Semaphore(2 * MAX_REQUESTS * WORKERS)
        self._lock = threading.Lock()

    def on_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Of the pool."""
        self.watch(event, fields)
        if event == "worker.ended":
            self._permits.release(max(1, fields["report"].calls))

    @property
    def recycled(self) -> int:
        """How many workers have ended."""
        return self.watch.counts["worker.ended"]

    def enough(self) -> bool:
        """Whether they may end."""
        return sum(self.done) >= self.calls and self.recycled >= self.recycles

    def work(self, pool: dspool.Pool, number: int) -> None:
        """One caller."""
        while not self.enough():
            if not self._permits.acquire(timeout=PATIENCE_S):
                raise TimeoutError(f"no worker was replaced for {PATIENCE_S} s: {pool.stats()}")
            try:
                right = pool.run(double, {"number": self.done[number]}) == 2 * self.done[number]
            except dspool.PoolClosed:
                return
            except dspool.DspoolError:
                with self._lock:
                    self.failed += 1
            else:
                with self._lock:
                    self.wrong += not right
            self.done[number] += 1


def recycles(plan: Plan) -> Finding:
    """See the module's docstring."""
    calls = plan.pick(short=1_000, chaos=5_000, soak=100_000)
    wanted = plan.pick(short=60, chaos=400, soak=10_000)
    samples: list[tuple[int, int, int]] = []
    callers = _Callers(calls, wanted)
    with Premises() as premises:
        with dspool.Pool(workers=WORKERS, max_requests=MAX_REQUESTS, on_event=callers.on_event) as pool:
            _at_rest(pool, callers.watch)
            before = premises.count()
            (template,) = premises.templates()
            began = time.monotonic()
            with Crowd(CALLERS, partial(callers.work, pool)) as crowd:
                while crowd.working:
                    count = callers.recycled
                    if count >= (samples[-1][0] if samples else 0) + max(1, wanted // 200):
                        samples.append((count, resident_bytes(os.getpid()), resident_bytes(template)))
                    plan.say(f"{count:,} of {wanted:,} recycles, {sum(callers.done):,} calls")
                    threading.Event().wait(0.01)
                stuck = crowd.join(time.monotonic() + PATIENCE_S)
            took_s = time.monotonic() - began
            _at_rest(pool, callers.watch)
            after = premises.count()
            stats = pool.stats()
        left = premises.left()
    slopes = {"manager": _slope(samples, 1), "template": _slope(samples, 2)}
    growth = 10_000 * slopes["manager"]
    return Finding(
        scenario="recycles",
        seed=plan.seed,
        done={
            "calls": sum(callers.done),
            "recycles": stats.exits.get("recycle_requests", 0),
            "memory_samples": len(samples),
        },
        lost={
            "wrong_answers": callers.wrong,
            "failed_calls": callers.failed,
            "callers_stuck": stuck,
            "other_exits": sum(count for reason, count in stats.exits.items() if reason != "recycle_requests"),
        },
        left={
            **{f"{name}_while_open": max(0, after[name] - before[name]) for name in before},
            **left,
        },
        measured={
            "took_s": took_s,
            "manager_slope_bytes_per_recycle": slopes["manager"],
            "template_slope_bytes_per_recycle": slopes["template"],
            "manager_mib_at_the_end": samples[-1][1] / 2**20,
        },
        missed=()
        if growth < GROWTH_GOAL_BYTES or wanted < 10_000
        else (f"the manager's memory grows by {growth / 2**20:.1f} MiB in 10,000 recycles; under 1 is promised",),
    )


def _at_rest(pool: dspool.Pool, watch: Watch) -> None:
    """Wait until all workers are ready and none leaves."""

    def at_rest() -> bool:
        stats = pool.stats()
        return stats.workers == stats.idle == WORKERS and not any(worker.due for worker in pool.workers())

    if not watch.until(at_rest, PATIENCE_S):
        raise TimeoutError(f"the pool does not come to rest: {pool.stats()}")


def _slope(samples: list[tuple[int, int, int]], column: int) -> float:
    """Bytes per recycle, over the second half of the samples."""
    kept = samples[len(samples) // 2 :]
    return statistics.linear_regression([each[0] for each in kept], [each[column] for each in kept]).slope
