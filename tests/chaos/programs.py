"""What workers are asked to run. Each worker imports it: standard library only."""

from __future__ import annotations

import time


def double(number: int) -> int:
    """Twice the number, at once."""
    return 2 * number


def take(seconds: float) -> float:
    """Take a while."""
    time.sleep(seconds)
    return seconds
