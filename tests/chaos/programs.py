"""What workers are asked to run. Each worker imports it: standard library only."""

from __future__ import annotations

import os
import time


def double(number: int) -> int:
    """Twice the number, at once."""
    return 2 * number


def take(seconds: float) -> float:
    """Take a while."""
    time.sleep(seconds)
    return seconds


_visits: dict[str, int] = {}
_birth: list[str] = []


def visit(session: str) -> tuple[str, int]:
    """What a session keeps in its worker: the worker's own name, and how often the session was there."""
    if not _birth:
        _birth.append(os.urandom(8).hex())
    _visits[session] = _visits.get(session, 0) + 1
    return _birth[0], _visits[session]
