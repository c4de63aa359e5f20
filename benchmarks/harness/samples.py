"""From times to figures.

Contestants take turns in rounds. A ratio between two of them is the median over the rounds of the rounds' own ratios:
when a neighbour on the same machine wakes up, it hits both sides of a round alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Samples:
    """Times of one contestant, in seconds, by round.

    Attributes:
        rounds: each round's times.
        cpu_s: CPU seconds of all rounds, of all processes that take part.
    """

    rounds: list[list[float]] = field(default_factory=list)
    cpu_s: float = 0.0

    def add(self, times: Sequence[float], cpu_s: float) -> None:
        """One more round."""
        if times:
            self.rounds.append(list(times))
            self.cpu_s += cpu_s

    @property
    def count(self) -> int:
        """How many calls were timed."""
        return sum(map(len, self.rounds))

    @property
    def medians(self) -> list[float]:
        """Each round's median."""
        return [statistics.median(times) for times in self.rounds]

    def percentile(self, percent: int) -> float:
        """A percentile over all rounds, in seconds; `percent` is whole, 1 to 99.

        Raises:
            ValueError: there are no samples.
        """
        if not self.rounds:
            raise ValueError("there are no samples")
        times = [seconds for round_times in self.rounds for seconds in round_times]
        return statistics.quantiles(times, n=100, method="inclusive")[percent - 1] if len(times) > 1 else times[0]

    @property
    def spread_percent(self) -> float:
        """How far rounds differ: the standard deviation of their medians, in percent of the mean; 0 for one round."""
        medians = self.medians
        return 100 * statistics.pstdev(medians) / statistics.fmean(medians) if len(medians) > 1 else 0.0

    def row(self, scale: float = 1e6, unit: str = "us") -> dict[str, float]:
        """The figures that are reported, times multiplied by `scale` and named after `unit`."""
        return {
            f"p50_{unit}": self.percentile(50) * scale,
            f"p99_{unit}": self.percentile(99) * scale,
            f"cpu_{unit}": self.cpu_s / self.count * scale,
            "spread_percent": self.spread_percent,
            "samples": self.count,
        }


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median of the quotients, pair by pair, as far as both go.

    Raises:
        ValueError: one of them is empty.
    """
    if not of or not to:
        raise ValueError("a ratio needs samples of both")
    return statistics.median(one / other for one, other in zip(of, to, strict=False))
