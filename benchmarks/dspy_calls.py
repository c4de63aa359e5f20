"""Real `dspy.ChainOfThought` calls over HTTP, to an LM that takes 0, 50 and 200 ms: what a process more is worth.

  python -m benchmarks.dspy_calls             a few minutes
  python -m benchmarks.dspy_calls --quick --only Pool

The ways to make many calls: one thread; dspy.Parallel with several numbers of threads; tasks that await acall; a
ProcessPoolExecutor whose initializer configures DSPy; and Pool on two workers with one and with many slots. All ask the
same LM, a process of its own that answers with canned text; its CPU per call is reported, because it comes out of the
same cores. DSPy's cache is off and every question is new. Ways take turns in rounds.

One process makes DSPy calls on one core at most, however many threads it has: at 0 ms that is all that counts. At 200
ms what counts is how many calls are in flight, and DSPy allows 100 for each LM object and so for each process.

How to read it: "p50 ms" and "p99 ms" are of a call with as many others in flight as the way allows; "CPU ms" is what a
call costs all processes together, the LM's left out; "in flight" is how many callers there were.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import dspool
from benchmarks.contestants import peers
from benchmarks.contestants.canned_lm import ANSWER, CannedLM
from benchmarks.contestants.contestant import AsyncCall, Blocking, Burst, Contestant, InLoop, Program, adopting
from benchmarks.contestants.meeting import meet
from benchmarks.contestants.programs import configure_lm, think
from benchmarks.harness.command import Benchmark, Row, Run, Scale, command
from benchmarks.harness.goals import Goal, best, figure, pick, quotient
from benchmarks.harness.plots import Figure, Panel
from benchmarks.harness.samples import Samples

WORKERS = 2
LONE = "one thread"
POOL_ALONE = "Pool, 1 worker"
PARALLEL = "dspy.Parallel"


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        latencies_ms: the LM's.
        threads: of dspy.Parallel.
        tasks: that await acall.
        slots: of each of Pool's two workers.
        processes: of ProcessPoolExecutor.
        rounds, round_s: of each way, at each latency.
        answers: a round is as long as so many answers take, at least.
        lone_calls: one after the other, in a round, to see what Pool adds to a call.
    """

    latencies_ms: tuple[int, ...]
    threads: tuple[int, ...]
    tasks: tuple[int, ...]
    slots: tuple[int, ...]
    processes: tuple[int, ...]
    rounds: int
    round_s: float
    answers: int
    lone_calls: int


SIZES: dict[Scale, Size] = {
    "full": Size((0, 50, 200), (16, 64, 128), (16, 64, 100), (1, 16, 64), (2, 16), 3, 1.5, 15, 100),
    "quick": Size((0, 200), (16, 64), (64,), (1, 64), (2,), 1, 0.4, 5, 30),
    "smoke": Size((0,), (4,), (4,), (1,), (2,), 1, 0.2, 5, 3),
}


class Questions:
    """New ones for ever."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def next(self) -> str:
        """One that was never asked before."""
        return f"What is {next(self._numbers)} + 2?"


def _right(answer: object) -> None:
    if answer != ANSWER:
        raise RuntimeError(f"the answer should be {ANSWER!r}, it is {answer!r}")


class Parallel(Contestant):
    """dspy.Parallel, which takes a list and gives a list; each call's time is taken around the program."""

    def __init__(self, program: Any, questions: Questions, threads: int) -> None:
        super().__init__(f"{PARALLEL}, {threads} threads", "peer", kills=False)
        import dspy

        self._questions, self._threads, self._per_second = questions, threads, 50.0
        self._times = times = list[float]()

        class Timed(dspy.Module):
            def forward(self, question: str) -> Any:
                began = time.perf_counter()
                prediction = program(question=question)
                times.append(time.perf_counter() - began)
                return prediction

        self._program = Timed()

    def call(self, program: Program, value: Any) -> Any:
        raise NotImplementedError("dspy.Parallel takes many calls at once")

    def _one_after_the_other(self, program: Program, value: Any, calls: int) -> list[float]:
        raise NotImplementedError("dspy.Parallel takes many calls at once")

    def _at_once(self, program: Program, value: Any, callers: int, duration_s: float) -> Burst:
        """A list that should take about so long, judging by the last one."""
        import dspy

        count = max(2 * self._threads, int(self._per_second * duration_s))
        parallel = dspy.Parallel(num_threads=self._threads, disable_progress_bar=True)
        pairs = [(self._program, {"question": self._questions.next()}) for _ in range(count)]
        self._times.clear()
        began = time.perf_counter()
        predictions = parallel(pairs)
        burst = Burst(list(self._times), time.perf_counter() - began)
        self._per_second = burst.per_second
        for prediction in predictions:
            _right(prediction.answer)
        return burst


@contextmanager
def _opened(run: Run, size: Size, lm: CannedLM) -> Iterator[list[tuple[Contestant, int]]]:
    """Every way that takes part, warm, and with how many callers."""
    import dspy

    dspy.configure(lm=dspy.LM("openai/stub", api_base=lm.url, api_key="stub-key", cache=False))
    dspy.configure(disable_history=True, trace=None)
    program = dspy.ChainOfThought("question -> answer")
    questions = Questions()
    ways: list[tuple[Contestant, int]] = []

    def here(_: Program, value: Any) -> None:
        _right(program(question=questions.next()).answer)

    @asynccontextmanager
    async def awaited() -> AsyncIterator[AsyncCall]:
        async def call(_: Program, value: Any) -> None:
            _right((await program.acall(question=questions.next())).answer)

        yield call

    with ExitStack() as stack:
        if run.peers:
            executor = next(peer for peer in peers.PEERS if peer.name == "ProcessPoolExecutor")
            for processes in size.processes:
                run.progress(f"opening ProcessPoolExecutor with {processes} processes")
                initializer = partial(configure_lm, lm.url)
                opened = stack.enter_context(executor.open(processes, initializer))
                with adopting(opened):
                    meet(opened.call, processes, 120.0)

                def there(_: Program, value: Any, opened: Contestant = opened) -> None:
                    _right(opened.call(think, questions.next()))

                way = Blocking(f"ProcessPoolExecutor, {processes} processes", "peer", there)
                way.pids = opened.pids
                ways.append((way, processes))
        for slots, workers in [*((slots, WORKERS) for slots in size.slots), (1, 1)]:
            name = POOL_ALONE if workers == 1 else f"Pool, {workers} workers x {slots} slots"
            run.progress(f"opening {name}")
            ways.append((_pool(stack, name, workers, slots, lm, program, questions), workers * slots))
        ways.append((Blocking(LONE, "peer", here), 1))
        ways += [(Parallel(program, questions, threads), threads) for threads in size.threads]
        acall = stack.enter_context(InLoop("asyncio acall", "peer", awaited, "asyncio").running())
        for tasks in size.tasks:
            ways.append((_Renamed(acall, f"asyncio acall, {tasks} tasks"), tasks))
        needed = (LONE, POOL_ALONE)
        yield [(way, callers) for way, callers in ways if run.wants(way.name) or way.name in needed]


def _pool(
    stack: ExitStack, name: str, workers: int, slots: int, lm: CannedLM, program: Any, questions: Questions
) -> Contestant:
    """A Pool that runs the program object itself, as its users do."""
    arguments = {"model": "openai/stub", "api_base": lm.url, "api_key": "stub-key", "cache": False}
    inner = Blocking(name, "dspool", lambda _, value: None, kills=slots == 1)
    with adopting(inner):
        pool = stack.enter_context(dspool.Pool(workers=workers, slots=slots, lm=arguments, warm=(program,)))

    def call(_: Program, value: Any) -> None:
        _right(pool.run(program, {"question": questions.next()}).answer)

    way = Blocking(name, "dspool", call, kills=slots == 1)
    way.pids = inner.pids
    return way


class _Renamed(Contestant):
    """One contestant under two names, for two numbers of callers."""

    def __init__(self, inner: Contestant, name: str) -> None:
        super().__init__(name, inner.kind, inner.kills)
        self._inner, self.pids = inner, inner.pids

    def call(self, program: Program, value: Any) -> Any:
        return self._inner.call(program, value)

    def _one_after_the_other(self, program: Program, value: Any, calls: int) -> list[float]:
        return self._inner._one_after_the_other(program, value, calls)

    def _at_once(self, program: Program, value: Any, callers: int, duration_s: float) -> Burst:
        return self._inner._at_once(program, value, callers, duration_s)


def measure(run: Run) -> list[Row]:
    """A row for each way and latency, and one for what Pool adds to a call."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # DSPy's first call would fetch a price list
    size = SIZES[run.scale]
    peers.quiet()
    rows: list[Row] = []
    with CannedLM() as lm, _opened(run, size, lm) as ways:
        rows.append(_measure_lone(run, size, ways))
        for latency_ms in size.latencies_ms:
            before, before_cpu_s = lm.set_latency(latency_ms / 1e3), lm.cpu_s()
            bursts: dict[str, list[Burst]] = {way.name: [] for way, _ in ways}
            duration_s = max(size.round_s, size.answers * latency_ms / 1e3)
            for number in range(size.rounds):
                for way, callers in ways:
                    run.progress(f"{latency_ms} ms, round {number + 1} of {size.rounds}: {way.name}")
                    if number == 0:
                        way.burst(think, None, callers, min(duration_s / 4, 0.5))
                    bursts[way.name].append(way.burst(think, None, callers, duration_s))
            lm_cpu_ms = 1e3 * (lm.cpu_s() - before_cpu_s) / max(1, lm.set_latency(0.0) - before)
            rows += [_row(way, callers, latency_ms, bursts[way.name], lm_cpu_ms) for way, callers in ways]
    return rows


def _row(way: Contestant, callers: int, latency_ms: int, bursts: list[Burst], lm_cpu_ms: float) -> Row:
    samples = Samples()
    for burst in bursts:
        samples.add(burst.times, burst.cpu_s)
    figures = samples.row(1e3, "ms")
    return {
        "question": "calls",
        "contestant": way.name,
        "kind": way.kind,
        "in_process": way.name.startswith((LONE, PARALLEL, "asyncio")),
        "latency_ms": latency_ms,
        "callers": callers,
        "per_s": statistics.median(burst.per_second for burst in bursts),
        **figures,
        "lm_cpu_ms": lm_cpu_ms,
    }


def _measure_lone(run: Run, size: Size, ways: list[tuple[Contestant, int]]) -> Row:
    """One call after the other, in this process and in a pool's one worker by turns: CPU per call."""
    run.progress("what Pool adds to a call")
    by_name = {way.name: way for way, _ in ways}
    cpu_s: dict[str, list[float]] = {LONE: [], POOL_ALONE: []}
    times: dict[str, list[float]] = {LONE: [], POOL_ALONE: []}
    for number in range(2 * size.rounds + 3):
        for name, found in cpu_s.items():
            taken, used_s = by_name[name].time_calls(think, None, size.lone_calls)
            if number:
                found.append(used_s / size.lone_calls)
                times[name].append(statistics.median(taken))
    added = [pool - here for pool, here in zip(cpu_s[POOL_ALONE], cpu_s[LONE], strict=True)]
    here_s = statistics.median(cpu_s[LONE])
    return {
        "question": "added",
        "contestant": POOL_ALONE,
        "kind": "dspool",
        "cpu_here_ms": here_s * 1e3,
        "cpu_pool_ms": statistics.median(cpu_s[POOL_ALONE]) * 1e3,
        "added_percent": 100 * statistics.median(added) / here_s,
        "p50_here_ms": statistics.median(times[LONE]) * 1e3,
        "p50_pool_ms": statistics.median(times[POOL_ALONE]) * 1e3,
        "samples": size.lone_calls * len(added),
    }


PLACES = {"pinned": "every process on one core", "unpinned": "unpinned"}


def show(rows: list[Row]) -> Mapping[str, tuple[Sequence[Row], Mapping[str, str]]]:
    """A table for each latency, the fastest first; then what Pool adds."""
    columns = {"contestant": "", "callers": "in flight", "per_s": "calls/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms"}
    columns |= {"cpu_ms": "CPU ms", "lm_cpu_ms": "LM's CPU ms", "samples": "calls"}
    tables: dict[str, tuple[Sequence[Row], Mapping[str, str]]] = {}
    for placement, place in PLACES.items():
        calls = pick(rows, question="calls", placement=placement)
        for latency_ms in sorted({row["latency_ms"] for row in calls}):
            ordered = sorted(pick(calls, latency_ms=latency_ms), key=lambda row: -row["per_s"])
            tables[f"ChainOfThought, LM takes {latency_ms} ms, {place}"] = (ordered, columns)
    added = {"placement": "", "cpu_here_ms": "CPU ms in process", "cpu_pool_ms": "CPU ms in Pool"}
    added |= {"added_percent": "added %", "p50_here_ms": "p50 ms in process", "p50_pool_ms": "p50 ms in Pool"}
    tables["one ChainOfThought after the other, LM takes 0 ms"] = (pick(rows, question="added"), added)
    return tables


def goals(rows: list[Row]) -> list[Goal]:
    """At 200 ms against dspy.Parallel, at 0 ms against one process."""
    judged = []
    calls = pick(rows, question="calls", placement="unpinned")
    slow = [row for row in pick(calls, latency_ms=200) if row["contestant"].startswith(PARALLEL)]
    parallel = best(slow, "per_s", most=True)
    pool = best(calls, "per_s", latency_ms=200, contestant=f"Pool, {WORKERS} workers x 64 slots")
    judged.append(
        Goal(
            f"calls per second at 200 ms, {WORKERS} workers x 64 slots, against dspy.Parallel's best number of threads",
            1.8,
            quotient(pool, parallel, "per_s"),
            at_least=True,
            against=parallel["contestant"] if parallel else "",
        )
    )
    single = best(calls, "per_s", most=True, latency_ms=0, in_process=True)
    ours = [row for row in pick(calls, latency_ms=0, kind="dspool") if row["contestant"] != POOL_ALONE]
    pool = best(ours, "per_s", most=True)
    judged.append(
        Goal(
            f"calls per second at 0 ms, {WORKERS} workers, against the best way in one process",
            1.8,
            quotient(pool, single, "per_s"),
            at_least=True,
            against=single["contestant"] if single else "",
        )
    )
    for placement in PLACES:
        added = best(rows, "added_percent", question="added", placement=placement)
        text = f"CPU that the pool adds to one real ChainOfThought, {placement}"
        judged.append(Goal(text, 3.0, figure(added, "added_percent"), unit="%", against=LONE))
    busiest = max((row["lm_cpu_ms"] for row in pick(rows, question="calls")), default=None)
    judged.append(Goal("the LM's own CPU per call, at most", 0.1, busiest, unit="ms"))
    return judged


def figures(rows: list[Row]) -> list[Figure]:
    """One: how many calls per second."""
    calls = pick(rows, question="calls", placement="unpinned")
    panels = []
    for latency_ms in sorted({row["latency_ms"] for row in calls}):
        ordered = sorted(pick(calls, latency_ms=latency_ms), key=lambda row: -row["per_s"])
        bars = [(row["contestant"], row["per_s"], row["kind"]) for row in ordered]
        panels.append(Panel(f"LM takes {latency_ms} ms, unpinned", "calls per second", bars=bars))
    return [Figure("dspy_calls", "How many real ChainOfThought calls per second?", panels)]


main = command(
    Benchmark("dspy_calls", __doc__, measure, show, goals, figures, quick_placements=("unpinned",)),
)

if __name__ == "__main__":
    main()
