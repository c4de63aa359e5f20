"""Crowd: threads that call a pool, begun together, ended together, and counted when they don't end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType


class Crowd:
    """Threads that do the same work.

        with Crowd(16, call) as crowd:      # call(number), number from 0 to 15
            ...
            crowd.join(deadline)

    They are daemons: one that never ends keeps no process alive. Leaving waits for nobody.

    Args:
        size: how many.
        work: what each does; it has to look at `over` where it goes round and round.
        first: called once when all are there, just before they begin.

    Attributes:
        over: set when they should end.
    """

    def __init__(self, size: int, work: Callable[[int], None], first: Callable[[], None] | None = None) -> None:
        self.over = threading.Event()
        self._work = work
        self._errors: list[BaseException] = []
        self._start = threading.Barrier(size, first)
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), name=f"caller-{number}", daemon=True)
            for number in range(size)
        ]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()

    def join(self, deadline: float) -> int:
        """Wait for them until the deadline. How many have not ended.

        Raises:
            BaseException: what one of them raised.
        """
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._errors:
            raise self._errors[0]
        return sum(thread.is_alive() for thread in self._threads)

    @property
    def working(self) -> bool:
        """Whether any of them has not ended, and none has failed."""
        return not self._errors and any(thread.is_alive() for thread in self._threads)

    def _serve(self, number: int) -> None:
        try:
            self._start.wait(30)
            self._work(number)
        except BaseException as error:
            self._errors.append(error)
            self.over.set()
