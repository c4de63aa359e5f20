"""Ten times as many calls as the pool can serve: it serves what it can, and refuses the rest at once.

Calls of 20 ms come at fixed times, whatever became of those before them, at ten times the rate that was measured as
the peak before. With a queue that holds half a second's work, for threads and for tasks; and, for tasks, with one that
could hold five seconds' work, more than the calls' deadline, and is kept short by `shed_target_s`. Two seconds after
the last arrival, less in a short run, the latency of single calls is compared with that before the first.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio

import dspool
from tests.chaos.crowd import Crowd
from tests.chaos.finding import Finding, Plan
from tests.chaos.premises import Premises, resident_bytes
from tests.chaos.programs import take
from tests.chaos.tally import Tally

WORKERS = 4
CALL_S = 0.02
TIMEOUT_S = 2.0
FACTOR = 10
SHORT_QUEUE, LONG_QUEUE = 100, 1_000
SHED_TARGET_S = 0.1
SINGLE_CALLS = 50
PATIENCE_S = 60.0
GOODPUT_GOAL_PERCENT, REFUSAL_GOAL_MS, GROWTH_GOAL_MIB, LATENCY_GOAL = 95.0, 10.0, 64.0, 1.5


class _Load:
    """Arrivals at fixed times, and what became of them.

    Attributes:
        ends: what calls came to, by the name of the error, "answer" for an answer.
        refused_ms: how long it took to be refused by a full queue.
        shed_ms: how long those waited who were shed.
        answered_ms: from a call's arrival to its answer.
    """

    def __init__(self, rate: float, seconds: float) -> None:
        self.count = int(rate * seconds)
        self.ends: Counter[str] = Counter()
        self.refused_ms: list[float] = []
        self.shed_ms: list[float] = []
        self.answered_ms: list[float] = []
        self.began = self.ended = 0.0
        self.late_s = 0.0
        self._rate = rate
        self._next = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """The first call arrives now."""
        self.began = time.monotonic()

    def next_arrival(self) -> float | None:
        """When the next call arrives; None after the last."""
        with self._lock:
            if self._next >= self.count:
                return None
            self._next += 1
            return self.began + (self._next - 1) / self._rate

    def over(self, due: float, called: float, error: Exception | None) -> None:
        """A call has ended.

        Args:
            due: when it should have arrived.
            called: when it did.
            error: what it raised.
        """
        now = time.monotonic()
        end = "answer" if error is None else type(error).__name__
        if error is not None and not isinstance(error, dspool.DspoolError):
            end = "untyped"
        with self._lock:
            self.ends[end] += 1
            self.ended = max(self.ended, now)
            self.late_s = max(self.late_s, called - due)
            took_ms = (now - called) * 1e3
            if error is None:
                self.answered_ms.append(took_ms)
            elif "is overloaded" in str(error):
                self.shed_ms.append(took_ms)
            elif isinstance(error, dspool.PoolSaturated):
                self.refused_ms.append(took_ms)


def _add(
    tally: Tally, name: str, load: _Load, peak: float, latency: tuple[float, float], stats: dspool.PoolStats
) -> None:
    """One overload is over."""
    tally.done.update({"calls": load.count, **{f"ended_with_{end}": many for end, many in load.ends.items()}})
    tally.lost.update(
        {
            "calls_never_resolved": load.count - load.ends.total(),
            "untyped_errors": load.ends["untyped"],
            "workers_lost": sum(stats.exits.values()),
            "leases_left": stats.leased + stats.waiting,
        }
    )
    tally.measure(f"{name}_peak_per_s", peak)
    goodput = load.ends["answer"] / (load.ended - load.began)
    tally.measure(f"{name}_goodput_percent", 100 * goodput / peak, least=GOODPUT_GOAL_PERCENT)
    tally.measure(f"{name}_answered_ms_median", statistics.median(load.answered_ms))
    if load.shed_ms:
        tally.done["ended_with_PoolSaturated_by_shedding"] += len(load.shed_ms)
        tally.measure(f"{name}_shed_ms_median", statistics.median(load.shed_ms))
    if load.refused_ms:
        tally.measure(f"{name}_refused_ms_median", statistics.median(load.refused_ms))
        p99 = statistics.quantiles(load.refused_ms, n=100)[-1]
        tally.measure(f"{name}_refused_ms_p99", p99, most=REFUSAL_GOAL_MS)
    before, after = latency
    tally.measure(f"{name}_latency_after_to_before", after / before, most=LATENCY_GOAL)


def overload(plan: Plan) -> Finding:
    """See the module's docstring."""
    seconds = plan.pick(short=1, chaos=2, soak=30)
    tally = Tally()
    with Premises() as premises:
        _of_threads(plan, seconds, tally)
        anyio.run(partial(_of_tasks, "tasks", plan, seconds, tally, max_waiting=SHORT_QUEUE))
        shedding = {"max_waiting": LONG_QUEUE, "shed_target_s": SHED_TARGET_S}
        anyio.run(partial(_of_tasks, "shedding", plan, seconds, tally, **shedding))
        left = premises.left()
    return tally.finding("overload", plan, left)


def _peak_s(plan: Plan) -> float:
    """How long the peak is measured."""
    return plan.pick(short=5, chaos=15, soak=50) / 10


def _quiet_s(plan: Plan) -> float:
    """How long after the last arrival the latency is looked at."""
    return plan.pick(short=2, chaos=10, soak=20) / 10


def _of_threads(plan: Plan, seconds: int, tally: Tally) -> None:
    name = "threads"
    with dspool.Pool(name=name, workers=WORKERS, timeout_s=TIMEOUT_S, max_waiting=SHORT_QUEUE) as pool:
        peak = _peak(pool, _peak_s(plan))
        before = statistics.median(_single_calls(pool))
        load = _Load(FACTOR * peak, seconds)

        def work(_number: int) -> None:
            while (due := load.next_arrival()) is not None:
                time.sleep(max(0.0, due - time.monotonic()))
                called, error = time.monotonic(), None
                try:
                    pool.run(take, {"seconds": CALL_S})
                except Exception as raised:
                    error = raised
                load.over(due, called, error)

        # As many as can wait or run, and some who are on their way to be refused.
        callers = pool.options.max_waiting + WORKERS + 20
        with _memory(name, tally), Crowd(callers, work, load.begin) as crowd:
            while crowd.working and not crowd.over.wait(0.2):
                plan.say(f"{name}: {load.ends.total():,} of {load.count:,} calls")
            crowd.join(time.monotonic() + PATIENCE_S)
        tally.measure(f"{name}_latest_arrival_ms", 1e3 * load.late_s)
        time.sleep(_quiet_s(plan))  # two seconds later is what is measured
        after = statistics.median(_single_calls(pool))
        _add(tally, name, load, peak, (before, after), pool.stats())


def _peak(pool: dspool.Pool, seconds: float) -> float:
    """Calls a second, where as many callers as are needed wait for nothing but their answers."""
    done = [0] * (2 * WORKERS)
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        while time.monotonic() < end:
            pool.run(take, {"seconds": CALL_S})
            done[number] += 1

    began = time.monotonic()
    with Crowd(len(done), work) as crowd:
        crowd.join(end + PATIENCE_S)
    return sum(done) / (time.monotonic() - began)


def _single_calls(pool: dspool.Pool) -> Iterator[float]:
    """Seconds that single calls take, one after the other."""
    for _ in range(SINGLE_CALLS):
        began = time.perf_counter()
        pool.run(take, {"seconds": 0.001})
        yield time.perf_counter() - began


async def _of_tasks(name: str, plan: Plan, seconds: int, tally: Tally, **options: Any) -> None:
    async with dspool.AsyncPool(name=name, workers=WORKERS, timeout_s=TIMEOUT_S, **options) as pool:
        peak = await _task_peak(pool, _peak_s(plan))
        before = await _task_latency(pool)
        load = _Load(FACTOR * peak, seconds)

        async def arrive(due: float) -> None:
            called, error = time.monotonic(), None
            try:
                await pool.run(take, {"seconds": CALL_S})
            except Exception as raised:
                error = raised
            load.over(due, called, error)

        with _memory(name, tally):
            load.begin()
            async with anyio.create_task_group() as tasks:
                while (due := load.next_arrival()) is not None:
                    plan.say(f"{name}: {load.ends.total():,} of {load.count:,} calls")
                    await anyio.sleep(max(0.0, due - time.monotonic()))
                    tasks.start_soon(arrive, due)
        tally.measure(f"{name}_latest_arrival_ms", 1e3 * load.late_s)
        await anyio.sleep(_quiet_s(plan))
        _add(tally, name, load, peak, (before, await _task_latency(pool)), await pool.stats())


async def _task_peak(pool: dspool.AsyncPool, seconds: float) -> float:
    began = time.monotonic()
    done = 0

    async def work() -> None:
        nonlocal done
        while time.monotonic() < began + seconds:
            await pool.run(take, {"seconds": CALL_S})
            done += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(2 * WORKERS):
            tasks.start_soon(work)
    return done / (time.monotonic() - began)


async def _task_latency(pool: dspool.AsyncPool) -> float:
    """The median of single calls."""
    took = []
    for _ in range(SINGLE_CALLS):
        began = time.perf_counter()
        await pool.run(take, {"seconds": 0.001})
        took.append(time.perf_counter() - began)
    return statistics.median(took)


@contextmanager
def _memory(name: str, tally: Tally) -> Iterator[None]:
    """Measure by how much the manager's memory grows meanwhile."""
    before = most = resident_bytes(os.getpid())
    over = threading.Event()

    def sample() -> None:
        nonlocal most
        while not over.wait(0.2):
            most = max(most, resident_bytes(os.getpid()))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield
    finally:
        over.set()
        sampler.join()
    tally.measure(f"{name}_memory_grows_mib", (most - before) / 2**20, most=GROWTH_GOAL_MIB)
