"""Watch: a pool's events, counted, and a wait for whatever they bring about."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any


class Watch:
    """Take it as a pool's `on_event`.

    Attributes:
        counts: how often each event came.
        last: when each event came last, monotonic seconds.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.last: dict[str, float] = {}
        self._news = threading.Condition()

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        """An event."""
        with self._news:
            self.counts[event] += 1
            self.last[event] = time.monotonic()
            self._news.notify_all()

    def until(self, true: Callable[[], bool], within_s: float) -> bool:
        """Wait until it is true, which is looked at after each event. Whether it was, in so many seconds."""
        deadline = time.monotonic() + within_s
        while True:
            seen = self.counts.total()
            if true():
                return True
            with self._news:
                while self.counts.total() == seen:
                    if not self._news.wait(max(0.0, deadline - time.monotonic())):
                        return False
