"""Starting workers: time to N of them, time to a new one after a SIGKILL, and the memory that each holds.

  python -m benchmarks.starts                 several minutes, with the peers of .venv-bench
  python -m benchmarks.starts --quick --only Pool
  python -m benchmarks.starts --start-method spawn

A worker is ready when it can run a call and has imported dspy, which is what takes the time. It is counted from the
first line of the opening until N calls are held by N workers at once, in a manager process of its own for each start.
The peers are those that can import dspy before their first call: by an initializer, a preload, or the standard
library's fork server that has imported it. The yardstick is `python -c "import dspy"` with warm files,
timed before each start ("x import"). Then the same with litellm, which DSPy loads for many providers.

A replacement is counted from the SIGKILL until the new worker is ready: of an idle worker, and in the middle of a call.

How to read it: private memory would come free if the worker ended; proportional counts a page that n processes share as
1/n of one, so that the sum over all workers is what they really hold. "after 20 calls" are real ChainOfThought calls
over HTTP, in each worker.
"""

from __future__ import annotations

import json
import os
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

import dspool
from benchmarks.contestants.peers import PEERS, quiet
from benchmarks.contestants.pools import start_methods
from benchmarks.contestants.replacing import Ward
from benchmarks.contestants.starting import MODULES, OPENINGS
from benchmarks.harness.command import Benchmark, Row, Run, Scale, command
from benchmarks.harness.goals import Goal, best, figure, pick, quotient
from benchmarks.harness.plots import Figure, Panel
from benchmarks.harness.processes import memory_mb
from benchmarks.harness.samples import Samples, ratio
from dspool.testing.stub_lm import StubLM

SLOW = ["loky", *(peer.name for peer in PEERS if peer.heavy)]
"""Not in a quick run."""
ROOT = Path(__file__).parents[1]
CALLS = 20


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        workers: N, without litellm.
        litellm_workers: N, with it.
        starts: how often each start is repeated.
        longest_s: a start that would take longer, judging by the last N, is left out.
        fast_kills, slow_kills: replacements, where they take milliseconds and where a second.
        called: workers that make calls before their memory is taken.
    """

    workers: tuple[int, ...]
    litellm_workers: tuple[int, ...]
    starts: int
    longest_s: float
    fast_kills: int
    slow_kills: int
    called: int


SIZES: dict[Scale, Size] = {
    "full": Size((1, 8, 32, 100), (1, 8), 3, 60.0, 100, 10, 8),
    "quick": Size((8,), (), 1, 4.0, 20, 2, 2),
    "smoke": Size((1,), (), 1, 20.0, 1, 1, 1),
}


def measure(run: Run) -> list[Row]:
    """Rows of four kinds, told apart by "question"."""
    size = SIZES[run.scale]
    quiet()
    known, refused = start_methods(run.start_methods)
    for method in refused:
        run.note(f"Pool, {method}: left out, this dspool does not know the start method {method!r}")
    return [
        *_measure_starts(run, size, known),
        *_measure_replacements(run, size, known),
        *_measure_called(run, size, known),
    ]


def _modules(litellm: bool) -> str:
    return "dspy, litellm" if litellm else "dspy"


class _Yardstick:
    """`python -c "import dspy"`, timed before each start: a neighbour who is awake then slows both."""

    def __init__(self) -> None:
        self._times: dict[bool, list[float]] = {}

    def import_s(self, litellm: bool) -> float:
        """How long it takes now. The first time of all reads the files and does not count."""
        command = [sys.executable, "-c", f"import {_modules(litellm)}"]
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "true"}
        if litellm not in self._times:
            self._times[litellm] = []
            subprocess.run(command, check=True, env=environment)
        began = time.perf_counter()
        subprocess.run(command, check=True, env=environment)
        self._times[litellm].append(time.perf_counter() - began)
        return self._times[litellm][-1]

    def rows(self) -> list[Row]:
        """What it took."""
        return [
            {
                "question": "start",
                "contestant": f'python -c "import {_modules(litellm)}"',
                "kind": "floor",
                "modules": _modules(litellm),
                "workers": 1,
                "ready_s": statistics.median(times),
                "x_import": 1.0,
                "starts": len(times),
            }
            for litellm, times in self._times.items()
        ]


def _measure_starts(run: Run, size: Size, known: list[str]) -> list[Row]:
    rows: list[Row] = []
    yardstick = _Yardstick()
    for who in OPENINGS:
        is_ours = who.startswith("Pool, ")
        if not run.wants(who) or (not is_ours and not run.peers) or (is_ours and who[6:] not in known):
            continue
        if who in MODULES and find_spec(MODULES[who]) is None:
            run.note(f"{who}: left out, {MODULES[who]} is not installed")
            continue
        if who in SLOW and run.scale == "quick":
            run.note(f"{who}: left out of a quick run, because it takes long")
            continue
        for litellm, counts in ((False, size.workers), (True, size.litellm_workers)):
            last: Row | None = None
            for workers in counts:
                if last is not None and (reason := _too_much(last, workers, size)):
                    run.note(f"{who}, {_modules(litellm)}: {workers} workers left out, {reason}")
                    break
                run.progress(f"{who}: {workers} workers, {_modules(litellm)}")
                last = _start(run, size, yardstick, who, workers, litellm)
                if last is None:
                    break
                rows.append(last)
    return [*yardstick.rows(), *rows]


def _too_much(last: Row, workers: int, size: Size) -> str | None:
    """Why so many workers should not be tried, judging by fewer."""
    estimate_s = last["ready_s"] * workers / last["workers"]
    if (last["workers"] > 1 and estimate_s > 2 * size.longest_s) or last["ready_s"] > size.longest_s:
        return f"{last['workers']} took {last['ready_s']:.1f} s"
    if last["private_mb"] * workers > psutil.virtual_memory().available / 1e6 * 0.7:
        return f"they would need {last['private_mb'] * workers / 1000:.1f} GB"
    return None


def _start(run: Run, size: Size, yardstick: _Yardstick, who: str, workers: int, litellm: bool) -> Row | None:
    command = [sys.executable, "-m", "benchmarks.contestants.start", who, str(workers)]
    command += ["--litellm"] if litellm else []
    times, imports, found = [], [], None
    for _ in range(size.starts):
        imports.append(yardstick.import_s(litellm))
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
        except subprocess.TimeoutExpired:
            run.note(f"{who}: {workers} workers were not ready in 400 s")
            return None
        if done.returncode:
            last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
            run.note(f"{who}: {workers} workers could not be started: {last_line[:200]}")
            return None
        found = json.loads(done.stdout.splitlines()[-1])
        times.append(found["ready_s"])
        if sum(times) > size.longest_s / 3:
            break
    assert found is not None
    return {
        "question": "start",
        "contestant": who,
        "kind": "dspool" if who.startswith("Pool, ") else "peer",
        "modules": _modules(litellm),
        "workers": workers,
        "ready_s": statistics.median(times),
        "x_import": ratio(times, imports),
        "starts": len(times),
        "private_mb": statistics.fmean(found["private_mb"]),
        "proportional_mb": statistics.fmean(found["proportional_mb"]),
        "total_private_mb": sum(found["private_mb"]),
        "total_proportional_mb": sum(found["proportional_mb"]),
    }


def _measure_replacements(run: Run, size: Size, known: list[str]) -> list[Row]:
    rows: list[Row] = []
    for method in known:
        who = f"Pool, {method}"
        if not run.wants(who):
            continue
        run.progress(f"{who}: replacements")
        kills = size.slow_kills if method == "spawn" else size.fast_kills
        try:
            with Ward(method).opened() as ward:
                idle = [ward.replace_idle() for _ in range(kills)]
                busy = [ward.replace_busy() for _ in range(kills)]
        except (dspool.DspoolError, queue.Empty) as error:
            run.note(f"{who}: replacements could not be measured: {type(error).__name__}: {str(error)[:300]}")
            continue
        for case, times in (
            ("idle: new worker ready", idle),
            ("in a call: new worker ready", [ready for ready, _ in busy]),
            ("in a call: caller knows", [known_s for _, known_s in busy]),
        ):
            row = Samples([times]).row(1e3, "ms")
            figures = {key: row[key] for key in ("p50_ms", "p99_ms", "samples")}
            rows.append({"question": "replacement", "contestant": who, "kind": "dspool", "case": case, **figures})
    return rows


def _measure_called(run: Run, size: Size, known: list[str]) -> list[Row]:
    """Each worker's memory once it has made calls."""
    import dspy

    rows: list[Row] = []
    with StubLM(process=True) as stub:
        for method in known:
            who = f"Pool, {method}"
            if not run.wants(who):
                continue
            run.progress(f"{who}: memory after {CALLS} calls in each worker")
            options: dict[str, Any] = {"start_method": method, "preload": "dspy", "lm": stub.lm()}
            program = dspy.ChainOfThought("question -> answer")
            with dspool.Pool(workers=size.called, **options) as pool:
                leases = [pool.checkout() for _ in range(size.called)]
                for number, lease in enumerate(leases):
                    for call in range(CALLS):
                        lease.run(program, {"question": f"What is {number} + {call}?"})
                for lease in leases:
                    lease.close()
                private, proportional = memory_mb([worker.pid for worker in pool.workers() if worker.pid is not None])
            rows.append(
                {
                    "question": "called",
                    "contestant": who,
                    "kind": "dspool",
                    "workers": size.called,
                    "private_mb": statistics.fmean(private),
                    "proportional_mb": statistics.fmean(proportional),
                }
            )
    return rows


def show(rows: list[Row]) -> Mapping[str, tuple[Sequence[Row], Mapping[str, str]]]:
    """A table for each question."""
    start = {"contestant": "", "modules": "imported", "workers": "workers", "ready_s": "ready s"}
    start |= {"x_import": "x import", "private_mb": "private MB each", "proportional_mb": "proportional MB each"}
    start |= {"total_proportional_mb": "all, MB", "starts": "starts"}
    case = {"contestant": "", "case": "killed", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "samples": "kills"}
    called = {"contestant": "", "workers": "workers", "private_mb": "private MB each"}
    called |= {"proportional_mb": "proportional MB each"}
    ordered = sorted(pick(rows, question="start"), key=lambda row: (row["modules"], row["workers"], row["ready_s"]))
    return {
        "time to N workers ready, from nothing": (ordered, start),
        "replacement of a killed worker": (pick(rows, question="replacement"), case),
        f"memory after {CALLS} calls in each worker": (pick(rows, question="called"), called),
    }


def goals(rows: list[Row]) -> list[Goal]:
    """For the best start method that took part, by default the template."""
    start = pick(rows, question="start", modules="dspy")
    method = "template" if pick(rows, contestant="Pool, template") else "spawn"
    who = f"Pool, {method}"
    judged = []
    for workers, limit in ((8, 1.7), (100, 3.0)):
        pool = best(start, "ready_s", contestant=who, workers=workers)
        text = f"{workers} workers ready ({method}) against one import of dspy"
        judged.append(Goal(text, limit, figure(pool, "x_import"), against='python -c "import dspy"'))
    hundred = best(start, "ready_s", contestant=who, workers=100)
    judged.append(
        Goal(f"private memory of 100 workers ({method})", 1500.0, figure(hundred, "total_private_mb"), unit="MB")
    )
    for case in ("idle", "in a call"):
        row = best(rows, "p50_ms", question="replacement", contestant=who, case=f"{case}: new worker ready")
        judged.append(
            Goal(f"replacement ({method}), killed {case}, median", 10.0, figure(row, "p50_ms"), unit="ms"),
        )
        judged.append(
            Goal(f"replacement ({method}), killed {case}, 99th percentile", 30.0, figure(row, "p99_ms"), unit="ms")
        )
    template, spawn = (
        best(rows, "private_mb", question="called", contestant=f"Pool, {each}") for each in ("template", "spawn")
    )
    text = f"private memory after {CALLS} calls, template against spawn"
    judged.append(Goal(text, 0.25, quotient(template, spawn, "private_mb"), against="Pool, spawn"))
    return judged


def figures(rows: list[Row]) -> list[Figure]:
    """Three: how soon, how large, and how soon again."""
    drawn = []
    start = pick(rows, question="start", modules="dspy")
    lines: dict[str, tuple[list[float], list[float], str]] = {}
    counts = sorted({row["workers"] for row in start})
    for row in start:
        if row["kind"] == "floor":
            lines[row["contestant"]] = ([float(count) for count in counts], [row["ready_s"]] * len(counts), "floor")
            continue
        xs, ys, _ = lines.setdefault(row["contestant"], ([], [], row["kind"]))
        xs.append(row["workers"])
        ys.append(row["ready_s"])
    ticks = (counts, [str(count) for count in counts])
    panel = Panel("with dspy imported", "workers", "seconds", lines=lines, log_x=True, log_y=True, x_ticks=ticks)
    drawn.append(Figure("starts-ready", "How soon are N workers ready?", [panel]))
    shared = max((n for n in counts if len(pick(start, workers=n)) > 1 or n == counts[0]), default=1)
    panels = []
    for key, title in (("private_mb", "private"), ("proportional_mb", "proportional")):
        found = sorted(
            (row for row in pick(start, workers=shared) if row.get(key) is not None), key=lambda row: row[key]
        )
        bars = [(row["contestant"], row[key], row["kind"]) for row in found]
        panels.append(Panel(f"{title} memory, {shared} workers", "MB per worker, after its start", bars=bars))
    drawn.append(Figure("starts-memory", "How much memory does a worker hold?", panels))
    replaced = pick(rows, question="replacement")
    bars = [
        (f"{row['contestant']}, {row['case']}, {what}", row[key], "dspool" if key == "p50_ms" else "floor")
        for row in replaced
        for key, what in (("p50_ms", "median"), ("p99_ms", "99th percentile"))
    ]
    panel = Panel("killed by SIGKILL", "ms after the SIGKILL (logarithmic)", bars=bars, log_x=True)
    return [*drawn, Figure("starts-replacement", "How soon is a killed worker replaced?", [panel])]


main = command(Benchmark("starts", __doc__, measure, show, goals, figures, placements=("unpinned",)))

if __name__ == "__main__":
    main()
