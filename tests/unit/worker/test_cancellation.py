"""A cancellation, and the pauses that it ends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dspool.worker.running import CallCancelled, Cancellation

pytestmark = pytest.mark.unit

PATIENCE_S = 20.0


def test_a_pause_of_a_call_that_goes_on_ends_by_itself() -> None:
    cancellation = Cancellation()
    cancellation.pause(0.001)
    cancellation.check()


def test_a_pause_ends_with_its_call() -> None:
    cancellation, begun = Cancellation(), threading.Event()

    def wait() -> None:
        begun.set()
        cancellation.pause(100 * PATIENCE_S)

    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(wait) for _ in range(2)]
        assert begun.wait(PATIENCE_S)
        cancellation.request()
        for future in waiting:
            assert isinstance(future.exception(PATIENCE_S), CallCancelled)


def test_a_call_that_was_cancelled_before_does_not_pause() -> None:
    cancellation = Cancellation()
    cancellation.request()
    with pytest.raises(CallCancelled):
        cancellation.pause(100 * PATIENCE_S)
    with pytest.raises(CallCancelled):
        cancellation.check()
