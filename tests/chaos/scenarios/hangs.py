"""Programs that never come back, in eight ways, while other calls run beside them: a blocking and an async pool.

Each is to be told of at its deadline, with the worker's stacks where it can still write them; the worker's whole
process group is to be dead by then, and the calls beside it are to notice nothing.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

from anyio.from_thread import BlockingPortal, start_blocking_portal

import dspool
from tests.chaos import hanging
from tests.chaos.figures import median, quantile
from tests.chaos.finding import Finding, Plan
from tests.chaos.premises import Premises
from tests.chaos.tally import Tally
from tests.chaos.witness import Door, Witness, door

WORKERS, NEIGHBOURS = 4, 3
TIMEOUT_S = 0.15
SURVIVE_S = 1.0
"""How long a killed process may take to be gone before it counts as left."""
TOLD_MEDIAN_MS, TOLD_P99_MS = 20.0, 100.0


class Kind(NamedTuple):
    """A way to hang: programs to choose from, how many processes each has, a word of its stack if it can be dumped."""

    programs: tuple[Callable[[str], None], ...]
    processes: int = 1
    dumped: bool = True


KINDS = {
    "sleep": Kind((hanging.sleeps,)),
    "cpu": Kind((hanging.spins,)),
    "gil": Kind((hanging.holds_gil_asleep, hanging.holds_gil_busy)),
    "stopped": Kind((hanging.stops,), dumped=False),
    "deaf": Kind((hanging.ignores_signals,), dumped=False),
    "import": Kind((hanging.imports,)),
    "grandchild": Kind((hanging.has_descendants,), processes=3),
    "daemon": Kind((hanging.has_daemon,), processes=2),
}


def answers(number: int) -> int:
    """What runs beside a hang."""
    time.sleep(0.002)
    return number


class Outcome(NamedTuple):
    """How a call ended, and when (monotonic)."""

    deadline: float
    told_at: float
    error: BaseException | None


class Front(Protocol):
    """A pool of either kind, driven from outside."""

    def start(self, program: Any, inputs: dict[str, Any], timeout_s: float) -> Future[Outcome]:
        """Begin a call."""

    def neighbours(self) -> Neighbours:
        """Begin to call from NEIGHBOURS callers, until they are ended."""

    def full(self) -> bool:
        """Wait until all workers are ready; whether they are."""


class Neighbours:
    """Calls beside the hangs, counted.

    Attributes:
        over: what the callers look at before each call.
        answered: how many gave the right value.
        lost: how many did not.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        self.answered = self.lost = 0
        self.first_error = ""
        self.callers: list[Future[None]] = []
        self._lock = threading.Lock()

    def count(self, right: bool, error: BaseException | None = None) -> None:
        """One call has ended."""
        with self._lock:
            self.answered += right
            self.lost += not right
            self.first_error = self.first_error or ("" if error is None else repr(error))

    def end(self) -> None:
        """Let each caller end after its call."""
        self.over.set()
        for caller in self.callers:
            caller.result()


class Blocking:
    """A Pool, called from threads."""

    def __init__(self, stack: ExitStack) -> None:
        self._pool = stack.enter_context(dspool.Pool(workers=WORKERS))
        self._threads = stack.enter_context(ThreadPoolExecutor(NEIGHBOURS + 1))

    def start(self, program: Any, inputs: dict[str, Any], timeout_s: float) -> Future[Outcome]:
        """Begin a call on a thread."""
        return self._threads.submit(self._call, program, inputs, timeout_s)

    def _call(self, program: Any, inputs: dict[str, Any], timeout_s: float) -> Outcome:
        deadline, error = time.monotonic() + timeout_s, None
        try:
            self._pool.run(program, inputs, timeout_s=timeout_s)
        except Exception as caught:
            error = caught
        return Outcome(deadline, time.monotonic(), error)

    def neighbours(self) -> Neighbours:
        """NEIGHBOURS threads."""
        found = Neighbours()
        found.callers = [self._threads.submit(self._neighbour, found, number) for number in range(NEIGHBOURS)]
        return found

    def _neighbour(self, found: Neighbours, number: int) -> None:
        while not found.over.is_set():
            try:
                found.count(self._pool.run(answers, {"number": number}) == number)
            except Exception as error:
                found.count(False, error)

    def full(self) -> bool:
        """Wait for all workers."""
        self._pool.wait_ready(WORKERS, timeout_s=10)
        return self._pool.health().ready == WORKERS


class Async:
    """An AsyncPool on an asyncio loop of its own."""

    def __init__(self, stack: ExitStack) -> None:
        self._portal: BlockingPortal = stack.enter_context(start_blocking_portal())
        self._pool = dspool.AsyncPool(workers=WORKERS)
        self._portal.call(self._pool.open)
        stack.callback(lambda: self._portal.call(self._pool.close))

    def start(self, program: Any, inputs: dict[str, Any], timeout_s: float) -> Future[Outcome]:
        """Begin a call in a task."""
        return self._portal.start_task_soon(self._call, program, inputs, timeout_s)

    async def _call(self, program: Any, inputs: dict[str, Any], timeout_s: float) -> Outcome:
        deadline, error = time.monotonic() + timeout_s, None
        try:
            await self._pool.run(program, inputs, timeout_s=timeout_s)
        except Exception as caught:
            error = caught
        return Outcome(deadline, time.monotonic(), error)

    def neighbours(self) -> Neighbours:
        """NEIGHBOURS tasks."""
        found = Neighbours()
        found.callers = [self._portal.start_task_soon(self._neighbour, found, number) for number in range(NEIGHBOURS)]
        return found

    async def _neighbour(self, found: Neighbours, number: int) -> None:
        while not found.over.is_set():
            try:
                found.count(await self._pool.run(answers, {"number": number}) == number)
            except Exception as error:
                found.count(False, error)

    def full(self) -> bool:
        """Wait for all workers."""

        async def look() -> bool:
            await self._pool.wait_ready(WORKERS, timeout_s=10)
            return (await self._pool.health()).ready == WORKERS

        return self._portal.call(look)


def hangs(plan: Plan) -> Finding:
    """Hang a call in each way, again and again, in a random order."""
    rng, tally = random.Random(plan.seed), Tally("untold", "reports_wrong", "dumps_missing", "calls_beside")
    each = plan.pick(short=1, chaos=2, soak=50)
    with Premises() as premises:
        with door() as entry:
            for front in (Blocking, Async):
                with ExitStack() as stack:
                    _hang_all(front(stack), entry, each, rng, tally, plan.say)
        left = premises.left()
    told = [ms for kind in KINDS for ms in tally.times_ms[kind]]
    tally.measure("told_median_ms", median(told))
    tally.measure("told_p99_ms", quantile(told, 0.99))
    tally.measure("gone_median_ms", median(tally.times_ms["gone"]))
    tally.measure("gone_p99_ms", quantile(tally.times_ms["gone"], 0.99))
    for kind in KINDS:
        tally.measure(f"{kind}_told_median_ms", median(tally.times_ms[kind]), most=TOLD_MEDIAN_MS)
    for kind in KINDS:
        tally.measure(f"{kind}_told_p99_ms", quantile(tally.times_ms[kind], 0.99), most=TOLD_P99_MS)
        tally.measure(f"{kind}_told_max_ms", max(tally.times_ms[kind], default=0.0))
    if late := tally.done["dumps_too_late"]:
        tally.missed.append(f"{late} workers that could have written their stacks did not within 10 ms")
    return tally.finding("hangs", plan, left)


def _hang_all(
    front: Front, entry: Door, each: int, rng: random.Random, tally: Tally, say: Callable[[str], None]
) -> None:
    order = [kind for kind in KINDS for _ in range(each)]
    rng.shuffle(order)
    beside = front.neighbours()
    try:
        for number, kind in enumerate(order):
            while not _hang(front, entry, kind, rng, tally):
                tally.done["begun_too_late"] += 1
            say(f"{type(front).__name__}: {number + 1} of {len(order)} hangs")
    finally:
        beside.end()
    tally.done["calls_beside"] += beside.answered
    tally.lost["calls_beside"] += beside.lost
    if beside.first_error:
        tally.complaints.append(f"a call beside: {beside.first_error}")


def _hang(front: Front, entry: Door, name: str, rng: random.Random, tally: Tally) -> bool:
    """Hang one call. False: its deadline came before it had begun, so that there is nothing to learn from it."""
    kind = KINDS[name]
    program = rng.choice(kind.programs)
    with _witness() as witness:
        call = front.start(program, {"door": entry.path}, TIMEOUT_S)
        pids = entry.arrivals(kind.processes, TIMEOUT_S)
        for pid in pids:
            witness.watch(pid)
        outcome = call.result()
        alive = witness.alive(outcome.told_at + SURVIVE_S)
        gone_at = time.monotonic()
        tally.left["survivors"] += alive
        tally.left["workers_missing"] += not front.full()
        if len(pids) < kind.processes:
            entry.empty()
            return False
    tally.done["hangs"] += 1
    tally.time(name, (outcome.told_at - outcome.deadline) * 1000)
    tally.time("gone", (gone_at - outcome.deadline) * 1000)
    if not isinstance(outcome.error, dspool.CallTimeout):
        tally.complain("untold", f"{name}: {outcome.error!r}")
    else:
        _judge(name, program.__name__, pids, outcome.error.report, tally)
    return True


@contextmanager
def _witness() -> Iterator[Witness]:
    witness = Witness()
    try:
        yield witness
    finally:
        witness.close()


def _judge(name: str, program: str, pids: list[int], report: dspool.ExitReport | None, tally: Tally) -> None:
    """Whether the exit report says what happened."""
    if report is None:
        tally.complain("reports_wrong", f"{name}: there is none")
        return
    if (
        (report.reason, report.signal) != ("timeout", "SIGKILL")
        or report.pid not in pids
        or not (report.calls and report.peak_rss_bytes and report.age_s > 0)
    ):
        tally.complain("reports_wrong", f"{name}: {report}")
    if not KINDS[name].dumped:
        if "no stack dump" not in report.detail:
            tally.complain("reports_wrong", f"{name}: {report.detail!r} doesn't say that there is no dump")
    elif "stack dump" in report.detail:  # none, or a part: a busy machine didn't let the worker write within its 10 ms
        tally.done["dumps_too_late"] += 1
    elif f"in {program}" not in report.stack_dump.partition("\n\n")[0]:
        tally.complain("dumps_missing", f"{name}: {report.detail!r} {report.stack_dump[:400]!r}")
