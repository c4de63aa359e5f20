"""Simulate the pool's core: each seed is a pool's life under a virtual clock, with the faults that the seed draws.

While it lasts, the core's laws are checked after every step. Then the faults end, and the pool has to become whole and
every call has to end. Each seed is run twice, and both have to do the same.

    python -m dspool.testing.simulator --seeds 500                    seeds 0 to 499
    python -m dspool.testing.simulator --start 5000 --seeds 500       seeds 5000 to 5499
    python -m dspool.testing.simulator --seeds 500 --moves            and which moves were seen, and which were not
    python -m dspool.testing.simulator --seed 17 --verbose            one seed, its trace as it happens

A move is one of the state tables, or a fault and the state it struck in ("death: checking").

Exit code 0: every seed held. 1: one broke a law; its seed, step, last trace lines and replay command are printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dspool.pool.core.states import LEASE_MOVES, POOL_MOVES, SLOT_MOVES, WORKER_MOVES
from dspool.testing.simulation import FAULT_MOVES, FAULTS, Move, SimulationFailure, SimWorld

DEFAULT_STEPS = 300
_TABLES: tuple[Any, ...] = (WORKER_MOVES, SLOT_MOVES, LEASE_MOVES, POOL_MOVES)
ALL_MOVES: frozenset[Move] = frozenset((old, new) for table in _TABLES for old in table for new in table[old])
"""Every move of the state tables."""


@dataclass
class Tally:
    """What some seeds did."""

    seeds: int = 0
    steps: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    moves: set[Move] = field(default_factory=set)
    fault_moves: Counter[str] = field(default_factory=Counter)
    """In how many seeds each was seen."""
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take another tally's counts over."""
        self.seeds += other.seeds
        self.steps += other.steps
        self.injected += other.injected
        self.outcomes += other.outcomes
        self.moves |= other.moves
        self.fault_moves += other.fault_moves
        self.failures += other.failures

    def summary(self, took_s: float) -> str:
        """One line: seeds, steps, speed, moves seen, and each fault's count."""
        faults = " ".join(f"{fault}={self.injected[fault]}" for fault in FAULTS)
        seen = len(self.moves & ALL_MOVES)
        return (
            f"{self.seeds} seeds, each twice, in {took_s:.1f} s: {self.steps} steps, {self.steps / took_s:,.0f} "
            f"commands/s; {seen} of {len(ALL_MOVES)} moves and {len(self.fault_moves)} of {len(FAULT_MOVES)} moves "
            f"of faults seen; {sum(self.outcomes.values())} calls; faults: {faults}"
        )

    def unseen(self) -> list[str]:
        """The moves that no seed made."""
        moves = [f"{type(old).__name__} {old} -> {new}" for old, new in ALL_MOVES - self.moves]
        return sorted(moves) + sorted(FAULT_MOVES - self.fault_moves.keys())


def simulate(seed: int, steps: int = DEFAULT_STEPS) -> Tally:
    """Run one seed twice and compare the traces.

    Args:
        seed: which one.
        steps: length of its safety phase, in steps of the core.

    Returns:
        What it did. `failures` is empty where everything held.
    """
    first, second = SimWorld(seed, steps), SimWorld(seed, steps, checked=False)
    tally = Tally(seeds=1)
    try:
        if first.run() != second.run():
            raise SimulationFailure(f"seed {seed}: two runs gave different traces")
    except SimulationFailure as failure:
        tally.failures.append(str(failure))
    tally.steps = first.steps + second.steps
    tally.injected, tally.outcomes, tally.moves = first.injected, first.outcomes, first.moves
    tally.fault_moves = Counter(first.fault_moves)
    return tally


def simulate_all(seeds: Iterable[int], steps: int = DEFAULT_STEPS) -> Tally:
    """Run many seeds in this process; stop at the first that fails."""
    tally = Tally()
    for seed in seeds:
        tally.add(simulate(seed, steps))
        if tally.failures:
            break
    return tally


def _parallel(start: int, seeds: int, steps: int, processes: int) -> Tally:
    processes = min(processes, seeds)
    if processes < 2:
        return simulate_all(range(start, start + seeds), steps)
    tally = Tally()
    with ProcessPoolExecutor(processes) as pool:
        count = min(8 * processes, seeds)
        parts = [range(start + first, start + seeds, count) for first in range(count)]
        for part in pool.map(simulate_all, parts, [steps] * len(parts)):
            tally.add(part)
    return tally


def _show(seed: int, steps: int) -> int:
    try:
        SimWorld(seed, steps, tell=print).run()
    except SimulationFailure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dspool.testing.simulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds (default: 100)")
    parser.add_argument("--start", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="steps with faults (default: 300)")
    cores = os.cpu_count() or 1
    parser.add_argument("--processes", type=int, default=cores, help=f"that share the seeds (default: {cores}, cores)")
    parser.add_argument("--verbose", action="store_true", help="with --seed: print the trace as it happens")
    parser.add_argument("--moves", action="store_true", help="also print in how many seeds each fault's move was seen")
    args = parser.parse_args(arguments)
    began = time.monotonic()
    if args.seed is not None and args.verbose:
        return _show(args.seed, args.steps)
    if args.seed is not None:
        tally = simulate(args.seed, args.steps)
    else:
        tally = _parallel(args.start, args.seeds, args.steps, args.processes)
    if args.moves:
        for move in sorted(tally.fault_moves):
            print(f"{tally.fault_moves[move]:8} {move}")
    if args.moves or args.seed is None:
        print("not seen:", ", ".join(tally.unseen()) or "none")
    print(tally.summary(time.monotonic() - began))
    for failure in tally.failures[:3]:
        print(failure, file=sys.stderr)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
