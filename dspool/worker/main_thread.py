"""What only the main thread may do, done there for the others: importing and configuring DSPy, loading programs.

`dspy.configure` belongs to the first thread that calls it, and a worker's first DSPy program may come on any slot. With
one slot the main thread serves it and loads on the way. With several, the main thread serves none: it could be deep in
a call of an hour while another slot waits for it to import dspy. It runs these jobs and nothing else, one at a time, so
a job waits for other loads only. A job must not ask for another: it is on the main thread already and runs it there.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Job(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._value: T

    def perform(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error
        self._done.set()

    def wait(self) -> T:
        self._done.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._value


class MainThread:
    """The main thread as a place to have things done."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()

    def run(self, work: Callable[[], T]) -> T:
        """Run `work` on the main thread and wait for it.

        Returns:
            what it returns; what it raises is raised here.
        """
        if threading.current_thread() is threading.main_thread():
            return work()
        job = _Job(work)
        self._jobs.put(job)  # type: ignore[arg-type]
        return job.wait()

    def serve(self) -> None:
        """Run jobs until stop()."""
        while (job := self._jobs.get()) is not None:
            job.perform()
            del job  # or the last program loaded would be kept alive here after the table forgot it

    def stop(self) -> None:
        """Have serve() return after the jobs that wait already."""
        self._jobs.put(None)
