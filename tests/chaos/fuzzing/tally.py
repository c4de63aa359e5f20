"""What fuzzing counted and timed, over all its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

KEPT = 20


class Tally:
    """Counts.

    Attributes:
        done: frames by what they went through, and what else was done.
        lost: what must not happen.
        removed_ms: from a lie to the end of the worker that told it, at most.
        complaints: what was lost, the first few.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.done: Counter[str] = Counter()
        self.lost: Counter[str] = Counter({"crashes": 0, "hangs": 0, "wrong_outcomes": 0, "unanswered": 0})
        self.removed_ms: list[float] = []
        self.complaints: list[str] = []
        self.say = say

    def complain(self, what: str, why: str) -> None:
        """Count a loss, and keep what it was."""
        self.lost[what] += 1
        if len(self.complaints) < KEPT:
            self.complaints.append(f"{what}: {why:.500}")
