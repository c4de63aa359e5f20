"""What a call's deadline leaves for one request to an LM. Pure; the LM that applies it is in `runtime`."""

from __future__ import annotations

import math
from typing import Any

SHORTEST_S = 0.01
"""With less than this left a request is not begun."""
LONGEST_PAUSE_S = 60.0


def request_timeout(left_s: float) -> float:
    """A timeout for one request: at most `left_s` and at least four fifths of it.

    DSPy keeps a connection pool for each timeout that it meets, so timeouts are taken from a fixed grid of four to the
    octave: calls with equal deadlines share their connections, and there are at most some fifty pools to an LM.
    """
    mantissa, exponent = math.frexp(left_s)
    return math.ldexp(math.floor(mantissa * 8) / 8, exponent)


def retry_pause(attempt: int, retry_after: Any) -> float:
    """Seconds to wait after a failed attempt (0 is the first): what the provider asked for, else 1, 2, 4, ..."""
    asked = finite_seconds(retry_after)
    return asked if asked is not None else float(min(2 ** min(attempt, 6), LONGEST_PAUSE_S))


def finite_seconds(value: Any) -> float | None:
    """A duration that may come from anywhere: None unless it is a finite number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None
