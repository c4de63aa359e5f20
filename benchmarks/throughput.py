"""Many callers at once: calls per second on two workers, and what the core's own steps cost as a pool grows.

  python -m benchmarks.throughput             a few minutes, with the peers of .venv-bench
  python -m benchmarks.throughput --quick --only Pool

1 to 64 callers (threads; tasks for those who live in an event loop) share two workers, with an echo and with a program
that uses 1 ms of CPU. On two cores two workers can't do more than two thousand of those per second, on one core one
thousand, and the manager's own CPU comes out of the same cores. Contestants take turns in rounds.

Then the core alone, in this process: a checkout and a checkin with 4 to 256 workers, and with up to 10,000 callers in
the queue. No process takes part: it is the cost of deciding, and it should not depend on either number.

How to read it: "per s" is the median of the rounds; "p99 ms" is the time that one caller waits for its call, queue
included; "CPU us" is what a call costs all processes together.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contestants.contestant import Burst
from benchmarks.contestants.core import BareCore
from benchmarks.contestants.field import gathered, ours, peers
from benchmarks.contestants.programs import burn_1ms, echo
from benchmarks.harness.command import Benchmark, Row, Run, Scale, command
from benchmarks.harness.goals import Goal, best, pick, quotient
from benchmarks.harness.plots import Figure, Panel
from benchmarks.harness.samples import Samples

WORKERS = 2
PROGRAMS = {"echo": echo, "1 ms CPU": burn_1ms}
VALUE = {"question": "What is 2+2?", "context": "x" * 60}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    callers: tuple[int, ...]
    rounds: int
    round_s: float
    core_workers: tuple[int, ...]
    core_waiting: tuple[int, ...]
    core_cycles: int
    core_rounds: int


SIZES: dict[Scale, Size] = {
    "full": Size((1, 2, 4, 16, 64), 3, 0.5, (4, 16, 64, 256), (1, 100, 1000, 10_000), 2000, 7),
    "quick": Size((1, 16, 64), 1, 0.1, (4, 256), (1, 10_000), 1000, 5),
    "smoke": Size((2,), 1, 0.05, (4, 8), (1, 20), 20, 2),
}


def measure(run: Run) -> list[Row]:
    """A row for each contestant, program and number of callers; and for each size of a core."""
    size = SIZES[run.scale]
    return [*_measure_core(size), *_measure_calls(run, size)]


def _measure_calls(run: Run, size: Size) -> list[Row]:
    bursts: dict[tuple[str, str, int], list[Burst]] = {}
    with gathered(run, [*ours(run, WORKERS), *peers(run, WORKERS, heavy=run.scale != "quick")], WORKERS) as contestants:
        kinds = {contestant.name: contestant.kind for contestant in contestants}
        for number in range(size.rounds):
            for program_name, program in PROGRAMS.items():
                for callers in size.callers:
                    run.progress(f"round {number + 1} of {size.rounds}: {program_name}, {callers} callers")
                    for contestant in list(contestants):
                        try:
                            contestant.burst(program, VALUE, callers, size.round_s / 5)
                            burst = contestant.burst(program, VALUE, callers, size.round_s)
                        except Exception as error:
                            what = f"{type(error).__name__}: {error}"
                            run.note(f"{contestant.name}: gave up with {callers} callers: {what}")
                            contestants.remove(contestant)
                            continue
                        bursts.setdefault((contestant.name, program_name, callers), []).append(burst)
    return [
        {"contestant": name, "kind": kinds[name], "program": program, "callers": callers, **_row(found)}
        for (name, program, callers), found in bursts.items()
    ]


def _row(bursts: list[Burst]) -> dict[str, float]:
    samples = Samples()
    for burst in bursts:
        samples.add(burst.times, burst.cpu_s)
    return {
        "per_s": statistics.median(burst.per_second for burst in bursts),
        "p50_ms": samples.percentile(50) * 1e3,
        "p99_ms": samples.percentile(99) * 1e3,
        "cpu_us": samples.cpu_s / samples.count * 1e6,
        "samples": samples.count,
    }


def _measure_core(size: Size) -> list[Row]:
    """All cores exist at once and take turns."""
    shapes = [(workers, 0) for workers in size.core_workers]
    shapes += [(size.core_workers[0], waiting) for waiting in size.core_waiting]
    cores = {shape: BareCore(*shape) for shape in shapes}
    samples = {shape: Samples() for shape in shapes}
    gc.collect()
    for _ in range(size.core_rounds):
        for shape, core in cores.items():
            core.time_cycles(size.core_cycles // 4 + 1)
            samples[shape].add(core.time_cycles(size.core_cycles), 0.0)
    return [
        {
            "contestant": "core",
            "kind": "dspool",
            "program": "checkout+checkin",
            "workers": workers,
            "waiting": waiting,
            "p50_us": samples[workers, waiting].percentile(50) * 1e6,
            "p99_us": samples[workers, waiting].percentile(99) * 1e6,
            "spread_percent": samples[workers, waiting].spread_percent,
            "samples": samples[workers, waiting].count,
        }
        for workers, waiting in shapes
    ]


CORE_COLUMNS = {"workers": "workers", "waiting": "waiting", "p50_us": "p50 us", "p99_us": "p99 us"} | {
    "spread_percent": "spread %",
    "samples": "samples",
}
LAST_COLUMNS = {"p99_ms": "p99 ms", "cpu_us": "CPU us"}
PLACES = {"pinned": "every process on one core", "unpinned": "unpinned"}


def show(rows: list[Row]) -> Mapping[str, tuple[Sequence[Row], Mapping[str, str]]]:
    """Calls per second by callers; the last columns are of the largest number of callers."""
    tables: dict[str, tuple[Sequence[Row], Mapping[str, str]]] = {}
    for placement, place in PLACES.items():
        for program in PROGRAMS:
            found = pick(rows, placement=placement, program=program)
            callers = sorted({row["callers"] for row in found})
            wide: dict[str, Row] = {}
            for row in found:
                line = wide.setdefault(row["contestant"], {"contestant": row["contestant"]})
                line[f"at {row['callers']}"] = row["per_s"]
                if row["callers"] == callers[-1]:
                    line |= {key: row[key] for key in LAST_COLUMNS}
            if not wide:
                continue
            last = f"at {callers[-1]}"
            columns = {"contestant": "callers"} | {f"at {count}": f"{count}" for count in callers}
            columns |= {key: f"{heading} at {callers[-1]}" for key, heading in LAST_COLUMNS.items()}
            ordered = sorted(wide.values(), key=lambda line: -line.get(last, 0.0))
            tables[f"{program}, {WORKERS} workers, calls per second, {place}"] = (ordered, columns)
        core = pick(rows, placement=placement, contestant="core")
        tables[f"the core's own checkout and checkin, {place}"] = (core, CORE_COLUMNS)
    return tables


def goals(rows: list[Row]) -> list[Goal]:
    """Against the best peer with as many callers; the core against itself."""
    judged = []
    for program, callers, limit in (("echo", 16, 2.0), ("1 ms CPU", 64, 1.0)):
        where: Row = {"placement": "unpinned", "program": program, "callers": callers}
        peer = best(rows, "per_s", most=True, kind="peer", **where)
        pool = best(rows, "per_s", contestant="Pool", **where)
        judged.append(
            Goal(
                f"Pool's calls per second against the best peer's, {program}, {callers} callers, unpinned",
                limit,
                quotient(pool, peer, "per_s"),
                at_least=True,
                against=peer["contestant"] if peer else "",
            )
        )
    for placement in PLACES:
        core = pick(rows, placement=placement, contestant="core")
        few, many = best(core, "p50_us", workers=4, waiting=0), best(core, "p50_us", workers=256, waiting=0)
        judged.append(Goal(f"the core with 256 workers against 4, {placement}", 1.5, quotient(many, few, "p50_us")))
        one, crowd = best(core, "p50_us", waiting=1), best(core, "p50_us", waiting=10_000)
        text = f"the core with 10,000 waiters against 1, {placement}"
        judged.append(Goal(text, 2.0, quotient(crowd, one, "p50_us")))
    return judged


def figures(rows: list[Row]) -> list[Figure]:
    """Three: many callers' calls, many callers' work, and how the core grows."""
    drawn = []
    for program, name, question in (
        ("echo", "throughput-echo", "How many small calls get through two workers?"),
        ("1 ms CPU", "throughput-cpu", "How much of two workers' time is work?"),
    ):
        panels = []
        for placement, place in PLACES.items():
            found = pick(rows, placement=placement, program=program)
            callers = sorted({row["callers"] for row in found})
            panels.append(
                Panel(
                    f"{program}, {place}",
                    "callers",
                    "calls per second (logarithmic)" if program == "echo" else "calls per second",
                    lines=_lines(found, "contestant", "callers", "per_s"),
                    log_x=True,
                    log_y=program == "echo",
                    x_ticks=(callers, [str(count) for count in callers]),
                )
            )
        drawn.append(Figure(name, question, panels))
    core = pick(rows, placement="unpinned", contestant="core")
    panels = []
    for title, label, xs in (
        ("nobody waits", "workers", [row for row in core if row["waiting"] == 0]),
        (f"{min((row['workers'] for row in core), default=0)} workers", "callers in the queue", _waiting(core)),
    ):
        key = "workers" if label == "workers" else "waiting"
        places = [row[key] for row in xs]
        lines = {
            what: (places, [row[column] for row in xs], kind)
            for what, column, kind in (("median", "p50_us", "dspool"), ("99th percentile", "p99_us", "floor"))
        }
        ticks = (places, [f"{place:,}" for place in places])
        panels.append(
            Panel(title, label, "checkout + checkin, us", lines=lines if xs else {}, log_x=True, x_ticks=ticks)
        )
    return [*drawn, Figure("throughput-core", "Does deciding cost more in a larger pool?", panels)]


def _waiting(core: list[Row]) -> list[Row]:
    return [row for row in core if row["waiting"]]


def _lines(rows: list[Row], label: str, x: str, y: str) -> dict[str, tuple[list[float], list[float], str]]:
    lines: dict[str, tuple[list[float], list[float], str]] = {}
    for row in sorted(rows, key=lambda row: row[x]):
        xs, ys, _ = lines.setdefault(row[label], ([], [], row["kind"]))
        xs.append(row[x])
        ys.append(row[y])
    return lines


main = command(Benchmark("throughput", __doc__, measure, show, goals, figures, quick_placements=("unpinned",)))

if __name__ == "__main__":
    main()
