"""dspy.Evaluate over 500 examples of a CPU-bound program: in one process with threads, and with the program wrapped.

  python -m benchmarks.evaluate               a few minutes
  python -m benchmarks.evaluate --quick

The program asks an LM that answers at once, in its own process, and then works in pure Python for 5 or 20 ms; the
metric takes less than a tenth of that. One process runs Python on one core at most, so threads don't help it. Wrapped
with pool.wrap, the same program runs on two workers; nothing else is changed. Ways take turns in rounds.

How to read it: "examples/s" is the median over the rounds; "CPU ms" is what an example costs all processes together;
"speedup" is against the fastest number of threads in one process, in the same round.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

import dspool
from benchmarks.harness.command import Benchmark, Row, Run, Scale, command
from benchmarks.harness.goals import Goal, best, figure, pick
from benchmarks.harness.plots import Figure, Panel
from benchmarks.harness.processes import cpu_s

WORKERS = 2
GOAL_MS = 20
"""What the goal is about: a program that takes so long."""


@dataclass(frozen=True)
class Size:
    """How much is measured: examples in a round, rounds, how long the program works, and numbers of threads."""

    examples: int
    rounds: int
    work_ms: tuple[int, ...]
    threads: tuple[int, ...]
    pooled: tuple[int, ...]


SIZES: dict[Scale, Size] = {
    "full": Size(500, 3, (5, 20), (1, 2, 4, 8), (2, 4, 8)),
    "quick": Size(100, 1, (20,), (1, 4), (2, 4)),
    "smoke": Size(6, 1, (1,), (1, 2), (2,)),
}


def busy(units: int) -> int:
    """Work in pure Python."""
    found = 0
    for number in range(units):
        found = (found * 31 + number * number) % 1_000_003
    return found


def units_for(seconds: float) -> int:
    """How much of it takes so long here: the fastest of some tries."""
    units, took = 20_000, []
    for _ in range(15):
        began = time.perf_counter()
        busy(units)
        took.append(time.perf_counter() - began)
    return max(1, int(units * seconds / min(took)))


def program_of(units: int) -> Any:
    """The program: asks, then works."""
    import dspy

    class Works(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            asked = self.ask(question=question)
            return dspy.Prediction(answer=asked.answer, found=busy(units), pid=os.getpid())

    return Works()


@dataclass(frozen=True)
class Way:
    """One way to evaluate: a name, what kind it is, how many threads Evaluate has, and the program."""

    name: str
    kind: str
    threads: int
    program: Any


@contextmanager
def ways(run: Run, size: Size, program: Any) -> Iterator[list[Way]]:
    """All of them; the pool is open and its workers are warm."""
    with dspool.Pool(workers=WORKERS, start_method=run.start_methods[0]) as pool:
        found = [Way(f"{threads} threads", "floor", threads, program) for threads in size.threads]
        found += [
            Way(f"wrapped, {WORKERS} workers, {threads} threads", "dspool", threads, pool.wrap(program))
            for threads in size.pooled
        ]
        yield [way for way in found if way.kind == "floor" or run.wants(way.name)]


def measure(run: Run) -> list[Row]:
    """One row for each way and each length of the program's work."""
    import dspy
    from dspy.utils import DummyLM

    logging.getLogger("dspy").setLevel(logging.WARNING)
    size, rows = SIZES[run.scale], []
    lm = DummyLM({"question": {"answer": "four"}})
    devset = [
        dspy.Example(question=f"two and {n}?", answer="four").with_inputs("question") for n in range(size.examples)
    ]
    for work_ms in size.work_ms:
        with dspy.context(lm=lm), ways(run, size, program_of(units_for(work_ms / 1000))) as found:
            rows += [{"work_ms": work_ms, **row} for row in _rounds(run, size, found, devset, f"{work_ms} ms")]
    return rows


def _rounds(run: Run, size: Size, found: list[Way], devset: list[Any], label: str) -> list[Row]:
    import dspy

    rates: dict[str, list[float]] = {way.name: [] for way in found}
    cpu: dict[str, float] = dict.fromkeys(rates, 0.0)
    for number in range(size.rounds):
        for way in found:
            run.progress(f"{label}: round {number + 1} of {size.rounds}, {way.name}")
            evaluate = dspy.Evaluate(devset=devset, metric=_right, num_threads=way.threads)
            dspy.Evaluate(devset=devset[: 2 * WORKERS], metric=_right, num_threads=WORKERS)(way.program)
            took, used = _timed(partial(evaluate, way.program))
            rates[way.name].append(len(devset) / took)
            cpu[way.name] += used
    own = [max(rates[way.name][number] for way in found if way.kind == "floor") for number in range(size.rounds)]
    return [
        {
            "way": way.name,
            "kind": way.kind,
            "threads": way.threads,
            "per_second": statistics.median(rates[way.name]),
            "speedup": statistics.median(mine / other for mine, other in zip(rates[way.name], own, strict=True)),
            "cpu_ms": 1000 * cpu[way.name] / (len(devset) * size.rounds),
        }
        for way in found
    ]


def _right(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.answer == prediction.answer and prediction.found >= 0)


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process and all below it."""
    pids = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
    used, began = cpu_s(pids), time.perf_counter()
    result = work()
    took = time.perf_counter() - began
    if result.score != 100:
        raise RuntimeError(f"the score should be 100, it is {result.score}")
    return took, cpu_s(pids) - used


COLUMNS = {"way": "", "per_second": "examples/s", "speedup": "speedup", "cpu_ms": "CPU ms"}


def show(rows: list[Row]) -> Mapping[str, tuple[Sequence[Row], Mapping[str, str]]]:
    """A table for each length of the program's work."""
    return {
        f"dspy.Evaluate, a program of {work_ms} ms, {placement}": (
            sorted(pick(rows, work_ms=work_ms, placement=placement), key=lambda row: -row["per_second"]),
            COLUMNS,
        )
        for placement in ("pinned", "unpinned")
        for work_ms in sorted({row["work_ms"] for row in rows})
    }


def goals(rows: list[Row]) -> list[Goal]:
    """One: that a second core is used."""
    found = best(rows, "speedup", most=True, kind="dspool", work_ms=GOAL_MS, placement="unpinned")
    text = f"pool.wrap: dspy.Evaluate, a program of {GOAL_MS} ms, {WORKERS} workers against the best number of threads"
    return [Goal(text, 1.7, figure(found, "speedup"), at_least=True, against="threads in one process")]


def figures(rows: list[Row]) -> list[Figure]:
    """How many examples a second?"""
    panels = []
    for work_ms in sorted({row["work_ms"] for row in rows}):
        ordered = sorted(pick(rows, work_ms=work_ms), key=lambda row: row["per_second"])
        bars = [(row["way"], row["per_second"], row["kind"]) for row in ordered]
        panels.append(Panel(f"a program of {work_ms} ms", "examples a second", bars=bars))
    return [Figure("evaluate", "How fast is dspy.Evaluate on two cores?", panels)]


main = command(
    Benchmark(
        "evaluate", __doc__, measure, show, goals, figures, placements=("unpinned",), quick_placements=("unpinned",)
    )
)

if __name__ == "__main__":
    main()
