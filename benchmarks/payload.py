"""Large values: 1 KB to 32 MB to a worker and back, as one string, as bytes, and as 16,384 strings.

  python -m benchmarks.payload                a few minutes, with the peers of .venv-bench
  python -m benchmarks.payload --quick --only Pool

One caller, one worker, an echo: every byte crosses twice and is encoded and decoded on both sides. The floor is a
framed MessagePack echo over a socket pair with the same buffers, which encodes and decodes the same value as often; the
raw socket pair moves as many bytes and encodes nothing. Contestants take turns in rounds.

How to read it: "MB/s" counts the value once, though it goes both ways; "of floor %" is the floor's time divided by the
contestant's in the same round (median over the rounds), so 100 is as fast as the floor. An empty cell means that the
contestant refused the value; the notes say why.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.field import floors, gathered, ours, peers
from benchmarks.contestants.floors import FRAMED, framed, raw
from benchmarks.contestants.programs import echo
from benchmarks.harness.command import Benchmark, Row, Run, Scale, command
from benchmarks.harness.goals import Goal, best, figure, pick, quotient
from benchmarks.harness.plots import Figure, Panel
from benchmarks.harness.samples import Samples, ratio

KB, MB = 1024, 1024 * 1024
STRINGS = 16 * 1024
KINDS = ("one str", "bytes", "16k strings")
SMALLEST_LIST = 256 * KB
"""Below, the strings would be too short to differ."""


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, each of about so many seconds, but of one call at least."""

    values: tuple[int, ...]
    rounds: int
    round_s: float
    slowest_s: float


SIZES: dict[Scale, Size] = {
    "full": Size((KB, 16 * KB, 256 * KB, MB, 4 * MB, 16 * MB, 32 * MB), 5, 0.15, 2.0),
    "quick": Size((KB, MB, 16 * MB), 2, 0.03, 0.6),
    "smoke": Size((KB, 256 * KB), 1, 0.01, 1.0),
}


def value_of(kind: str, size: int) -> Any:
    """A value with so many characters or bytes in it.

    The strings differ: pickle would send one that occurs again as a reference, and the peers would carry nothing.
    """
    if kind == "bytes":
        return b"x" * size
    if kind == "one str":
        return "x" * size
    return [f"{number:05}".ljust(size // STRINGS, "x") for number in range(STRINGS)]


def measure(run: Run) -> list[Row]:
    """One row for each contestant, kind and size."""
    size = SIZES[run.scale]
    rows: list[Row] = []
    openings = [*floors(raw, framed), *ours(run, 1, ("asyncio",)), *peers(run, 1, heavy=run.scale != "quick")]
    with gathered(run, openings, 1) as contestants:
        tired: set[tuple[str, str]] = set()
        for kind in KINDS:
            for count in size.values:
                if kind == "16k strings" and count < SMALLEST_LIST:
                    continue
                run.progress(f"{kind}, {_said(count)}")
                taking = [one for one in contestants if (one.name, kind) not in tired]
                rows += _measure_value(run, size, taking, kind, count, tired)
    return rows


def _measure_value(
    run: Run, size: Size, contestants: list[Contestant], kind: str, count: int, tired: set[tuple[str, str]]
) -> list[Row]:
    value = value_of(kind, count)
    samples: dict[str, Samples] = {}
    calls = {}
    for contestant in contestants:
        try:
            began = time.perf_counter()
            contestant.time_calls(echo, value, 1)
            took_s = time.perf_counter() - began
            if took_s > size.slowest_s:
                run.note(
                    f"{contestant.name}: one {kind} of {_said(count)} took it {took_s:.1f} s, larger ones left out"
                )
                tired.add((contestant.name, kind))
                continue
            times, _ = contestant.time_calls(echo, value, 1)
        except Exception as error:
            what = f"{type(error).__name__}: {str(error)[:120]}"
            run.note(f"{contestant.name}: refused {kind} of {_said(count)} ({what}), larger ones left out")
            tired.add((contestant.name, kind))
            continue
        samples[contestant.name] = Samples()
        calls[contestant.name] = max(1, min(2000, int(size.round_s / min(times))))
    taking = [contestant for contestant in contestants if contestant.name in samples]
    for _ in range(size.rounds):
        for contestant in taking:
            samples[contestant.name].add(*contestant.time_calls(echo, value, calls[contestant.name]))
    floor = samples[FRAMED].medians
    return [
        {
            "contestant": contestant.name,
            "kind": contestant.kind,
            "value": kind,
            "bytes": count,
            **samples[contestant.name].row(1e3, "ms"),
            "mb_per_s": count / 1e6 / samples[contestant.name].percentile(50),
            "of_floor_percent": 100 * ratio(floor, samples[contestant.name].medians),
        }
        for contestant in taking
    ]


def _said(count: int) -> str:
    return f"{count // MB} MB" if count >= MB else f"{count // KB} KB"


PLACES = {"pinned": "every process on one core", "unpinned": "unpinned"}


def show(rows: list[Row]) -> Mapping[str, tuple[Sequence[Row], Mapping[str, str]]]:
    """By kind: time and CPU at the largest size that everybody's table has, and the share of the floor at each."""
    tables: dict[str, tuple[Sequence[Row], Mapping[str, str]]] = {}
    for placement, place in PLACES.items():
        for kind in KINDS:
            found = pick(rows, placement=placement, value=kind)
            sizes = sorted({row["bytes"] for row in found})
            wide: dict[str, Row] = {}
            for row in found:
                line = wide.setdefault(row["contestant"], {"contestant": row["contestant"]})
                line[f"ms {row['bytes']}"] = row["p50_ms"]
                line[f"share {row['bytes']}"] = row["of_floor_percent"]
                line["cpu_ms"] = row["cpu_ms"]
            columns = {"contestant": "median ms, then % of floor"}
            columns |= {f"ms {size}": f"{_said(size)}" for size in sizes}
            columns |= {f"share {size}": f"% {_said(size)}" for size in sizes if size >= MB or len(sizes) < 4}
            columns |= {"cpu_ms": "CPU ms at its largest"}
            order = f"share {MB}"
            ordered = sorted(wide.values(), key=lambda line: -line.get(order, 0.0))
            tables[f"{kind} there and back, {place}"] = (ordered, columns)
    return tables


def goals(rows: list[Row]) -> list[Goal]:
    """16 MB against the floor in the same run."""
    judged = []
    for placement in PLACES:
        for kind in KINDS:
            pool = best(rows, "p50_ms", placement=placement, value=kind, bytes=16 * MB, contestant="Pool")
            text = f"Pool's echo of 16 MB ({kind}) against the framed floor's speed, {placement}"
            share = figure(pool, "of_floor_percent")
            judged.append(Goal(text, 85.0, share, at_least=True, unit="%", against=FRAMED))
            peer = best(rows, "p50_ms", placement=placement, value=kind, bytes=16 * MB, kind="peer")
            text = f"Pool: times faster than the fastest peer, echo of 16 MB ({kind}), {placement}"
            against = peer["contestant"] if peer else ""
            judged.append(Goal(text, 1.0, quotient(peer, pool, "p50_ms"), at_least=True, against=against))
    return judged


def figures(rows: list[Row]) -> list[Figure]:
    """One: how fast do large values travel?"""
    panels = []
    for kind in KINDS:
        lines: dict[str, tuple[list[float], list[float], str]] = {}
        found = sorted(pick(rows, placement="unpinned", value=kind), key=lambda row: row["bytes"])
        for row in found:
            xs, ys, _ = lines.setdefault(row["contestant"], ([], [], row["kind"]))
            xs.append(row["bytes"])
            ys.append(row["mb_per_s"])
        sizes = sorted({row["bytes"] for row in found})
        panels.append(
            Panel(
                f"{kind}, unpinned",
                "size of the value",
                "MB/s there and back (logarithmic)" if kind == KINDS[0] else "",
                lines=lines,
                log_x=True,
                log_y=True,
                x_ticks=(sizes, [_said(size) for size in sizes]),
            )
        )
    return [Figure("payload", "How fast do large values travel?", panels)]


main = command(Benchmark("payload", __doc__, measure, show, goals, figures, quick_placements=("unpinned",)))

if __name__ == "__main__":
    main()
