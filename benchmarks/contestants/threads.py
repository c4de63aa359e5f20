"""Callers on threads that can be given up: a peer that never answers must not keep the whole run from ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def start(work: Callable[[], T], name: str) -> Future[T]:
    """Do it on a thread of its own, which does not keep the interpreter from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def results(futures: Sequence[Future[T]], timeout_s: float) -> list[T]:
    """All results, in order.

    Raises:
        TimeoutError: they were not all there in time; their threads are left behind.
    """
    deadline = time.monotonic() + timeout_s
    return [future.result(max(0.0, deadline - time.monotonic())) for future in futures]
