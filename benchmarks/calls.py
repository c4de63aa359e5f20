"""Round trip of a small echo: what a call through the pool costs beside a bare pipe, and beside every peer.

  python -m benchmarks.calls                  a few minutes, with the peers of .venv-bench
  python -m benchmarks.calls --quick --no-peers

One caller, one worker, one call after the other. Everybody is open and warm before the first round; then floor, dspool
and peers take turns, so that a noisy neighbour hits all of them alike. Every call is a whole one: dspool checks a slot
out and in, looks at its pipe and keeps a deadline.

How to read it: "x floor" is the time divided by the framed socket pair's in the same round (median over the rounds);
"CPU us" is what the call costs all processes together; "spread %" is how far the rounds' medians differ, and
differences smaller than it mean nothing. "kills" says who can end one call that hangs without losing the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.field import floors, gathered, ours, peers
from benchmarks.contestants.floors import FRAMED, framed, small_raw
from benchmarks.contestants.programs import echo
from benchmarks.harness.command import Benchmark, Row, Run, Scale, command
from benchmarks.harness.goals import Goal, best, figure, pick, quotient
from benchmarks.harness.plots import Figure, Panel
from benchmarks.harness.samples import Samples, ratio

VALUE = {"question": "What is 2+2?", "context": "x" * 60}
"""About 100 bytes once encoded."""


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, and for each round calls, or seconds for those who would take longer."""

    rounds: int
    calls: int
    round_s: float


SIZES: dict[Scale, Size] = {
    "full": Size(rounds=9, calls=2000, round_s=0.6),
    "quick": Size(rounds=3, calls=200, round_s=0.06),
    "smoke": Size(rounds=2, calls=10, round_s=0.05),
}


def measure(run: Run) -> list[Row]:
    """One row for each contestant."""
    size = SIZES[run.scale]
    heavy = run.scale != "quick" or run.placement == "unpinned"  # once is enough to see that they still work
    openings = [*floors(small_raw, framed), *ours(run, 1), *peers(run, 1, heavy=heavy)]
    with gathered(run, openings, 1) as contestants:
        samples = {contestant.name: Samples() for contestant in contestants}
        calls = {contestant.name: _calls_of(contestant, size) for contestant in contestants}
        for number in range(size.rounds):
            run.progress(f"round {number + 1} of {size.rounds}")
            for contestant in contestants:
                contestant.time_calls(echo, VALUE, max(3, calls[contestant.name] // 10))
                samples[contestant.name].add(*contestant.time_calls(echo, VALUE, calls[contestant.name]))
        floor = samples[FRAMED].medians
        return [
            {
                "contestant": contestant.name,
                "kind": contestant.kind,
                "kills": contestant.kills,
                **samples[contestant.name].row(),
                "x_floor": ratio(samples[contestant.name].medians, floor),
            }
            for contestant in contestants
        ]


def _calls_of(contestant: Contestant, size: Size) -> int:
    """As many as a round is meant to have, fewer where they would take longer than a round may."""
    times, _ = contestant.time_calls(echo, VALUE, 20)
    return max(5, min(size.calls, int(size.round_s / (sum(times[5:]) / 15))))


COLUMNS = {
    "contestant": "",
    "p50_us": "p50 us",
    "p99_us": "p99 us",
    "x_floor": "x floor",
    "cpu_us": "CPU us",
    "spread_percent": "spread %",
    "kills": "kills",
    "samples": "samples",
}
TITLES = {"pinned": "echo, every process on one core", "unpinned": "echo, unpinned"}


def show(rows: list[Row]) -> Mapping[str, tuple[Sequence[Row], Mapping[str, str]]]:
    """A table for each placement, the fastest first."""
    return {
        title: (sorted(pick(rows, placement=placement), key=lambda row: row["p50_us"]), COLUMNS)
        for placement, title in TITLES.items()
    }


AGAINST_FLOOR = {
    ("Pool", "pinned"): 2.0,
    ("Pool", "unpinned"): 1.3,
    ("AsyncPool, asyncio", "pinned"): 2.7,
    ("AsyncPool, uvloop", "pinned"): 2.0,
    ("AsyncPool, trio", "pinned"): 3.0,
}
"""Most that a median may be of the framed floor's."""
AGAINST_PEERS = {("pinned", False): 2.2, ("pinned", True): 3.5, ("unpinned", False): 1.5}
"""(placement, only peers that can kill one call) -> how many times faster than the fastest of them."""


def goals(rows: list[Row]) -> list[Goal]:
    """Quotients of medians."""
    judged = []
    for (contestant, placement), limit in AGAINST_FLOOR.items():
        row = best(rows, "p50_us", placement=placement, contestant=contestant)
        text = f"{contestant}: echo against the framed floor, {placement}"
        judged.append(Goal(text, limit, figure(row, "x_floor"), against=FRAMED))
    for (placement, killing), factor in AGAINST_PEERS.items():
        pool = best(rows, "p50_us", placement=placement, contestant="Pool")
        peer = best(rows, "p50_us", placement=placement, kind="peer", **({"kills": True} if killing else {}))
        whom = "the fastest peer that can kill one call" if killing else "the fastest peer"
        text = f"Pool: times faster than {whom}, echo, {placement}"
        against = peer["contestant"] if peer else ""
        judged.append(Goal(text, factor, quotient(peer, pool, "p50_us"), at_least=True, against=against))
    return judged


def figures(rows: list[Row]) -> list[Figure]:
    """One: how long does a small call take?"""
    panels = []
    for placement, title in TITLES.items():
        ordered = sorted(pick(rows, placement=placement), key=lambda row: row["p50_us"])
        bars = [(row["contestant"], row["p50_us"], row["kind"]) for row in ordered]
        panels.append(Panel(title, "median round trip, us (logarithmic)", bars=bars, log_x=True))
    return [Figure("calls", "How long does a small call take?", panels)]


main = command(Benchmark("calls", __doc__, measure, show, goals, figures))

if __name__ == "__main__":
    main()
