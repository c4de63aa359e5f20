"""Medians and quantiles of what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def median(samples: Sequence[float]) -> float:
    """The middle one; NaN of none."""
    return statistics.median(samples) if samples else math.nan


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that so great a share of them is not over; NaN of none."""
    if not samples:
        return math.nan
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]
