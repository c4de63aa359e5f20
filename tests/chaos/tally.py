"""What a scenario counts and measures as it goes, and the finding that comes of it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

from tests.chaos.finding import Finding, Plan

COMPLAINTS_KEPT = 20


class Tally:
    """Counts and figures of one scenario.

    Args:
        lost: what must not happen, so that it is told of also where it didn't.

    Attributes:
        done: what was done, and how often.
        lost: what must not happen.
        left: what must not stay.
        times_ms: times by what they are of, for the scenario to make figures of.
        measured: figures, the unit last in the name.
        missed: a sentence for each goal that was missed.
        complaints: what was lost, the first few.
    """

    def __init__(self, *lost: str) -> None:
        self.done: Counter[str] = Counter()
        self.lost: Counter[str] = Counter(dict.fromkeys(lost, 0))
        self.left: Counter[str] = Counter()
        self.times_ms: defaultdict[str, list[float]] = defaultdict(list)
        self.measured: dict[str, float] = {}
        self.missed: list[str] = []
        self.complaints: list[str] = []

    def complain(self, what: str, why: object) -> None:
        """Count a loss, and keep what it was."""
        self.lost[what] += 1
        if len(self.complaints) < COMPLAINTS_KEPT:
            self.complaints.append(f"{what}: {why!s:.500}")

    def time(self, what: str, took_ms: float) -> None:
        """One more time of this."""
        self.times_ms[what].append(took_ms)

    def measure(self, name: str, value: float, *, most: float = math.inf, least: float = -math.inf) -> None:
        """A figure, and its goal."""
        self.measured[name] = value
        if value < least or value > most:
            bound = f"at most {most:g}" if value > most else f"at least {least:g}"
            self.missed.append(f"{name.replace('_', ' ')} is {value:.3g}; {bound} is promised")

    def finding(self, scenario: str, plan: Plan, left: Mapping[str, int]) -> Finding:
        """All of it. Complaints are said, for a person to read.

        Args:
            scenario: its name.
            plan: what it was asked for.
            left: what else must not stay.
        """
        for complaint in self.complaints:
            plan.say(complaint)
        return Finding(
            scenario=scenario,
            seed=plan.seed,
            done=dict(self.done),
            lost=dict(self.lost),
            left={**self.left, **left},
            measured=self.measured,
            missed=tuple(self.missed),
        )
