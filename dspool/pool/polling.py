"""How a thread waits: the waits of the data path, by polling with the call's own deadline.

The main thread holds Ctrl-C back but for the waits themselves (interrupts.py says why); other threads never get it.
"""

from __future__ import annotations

import select
import threading
import time
from typing import Any, TypeVar

from dspool.pool.driver import Driver
from dspool.pool.interrupts import guard
from dspool.pool.steps import HOOK, READ, REPORT, WRITE, Steps, Wait

T = TypeVar("T")
_MAX_POLL_MS = 60_000


def drive(driver: Driver, steps: Steps[T]) -> T:
    """Run steps of the data path on this thread, blocking where they wait."""
    main = threading.get_ident() == guard.main
    held = main and guard.enter()
    try:
        wait = next(steps)
        while True:
            try:
                if main:
                    guard.begin_wait()
                came = _poll(wait[1], wait[2]) if wait[0] is READ else _wait(driver, wait)
                if main:
                    guard.waiting = False
            except BaseException as error:
                if main:
                    guard.waiting = False
                wait = steps.throw(error)
            else:
                wait = steps.send(came)
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        if main:
            guard.depth -= 1
            guard.left(held)


def _poll(pipe: Any, deadline: float) -> bool:
    while True:
        left_s = deadline - time.monotonic()
        if pipe.poller.poll(int(left_s * 1000) + 1 if 0 < left_s < 60 else 0 if left_s <= 0 else _MAX_POLL_MS):
            return True
        if left_s <= 0:
            return False


def _wait(driver: Driver, wait: Wait) -> Any:
    kind, what, deadline = wait
    if kind is HOOK:
        return what()
    if kind is WRITE:
        return _poll_writable(what, deadline)
    if kind is REPORT:
        return _wait_report(driver, what, deadline)
    return _wait_grant(driver, what, deadline)


def _poll_writable(pipe: Any, deadline: float) -> bool:
    pipe.poller.modify(pipe.sock, select.POLLIN | select.POLLOUT)
    try:
        return _poll(pipe, deadline)
    finally:
        pipe.poller.modify(pipe.sock, select.POLLIN)


def _wait_report(driver: Driver, worker_id: int, deadline: float) -> bool:
    while worker_id not in driver.reports:
        changed = threading.Event()
        driver.changed.append(changed.set)
        if worker_id in driver.reports:
            break
        if driver.over.is_set() or not changed.wait(max(0.0, deadline - time.monotonic())):
            return False
    return True


def _wait_grant(driver: Driver, lease_id: int, deadline: float) -> bool:
    asleep = threading.Lock()
    asleep.acquire()
    driver.wake_with(lease_id, asleep.release)
    try:
        if driver.decided(lease_id):
            return True
        left_s = deadline - time.monotonic()
        return asleep.acquire(timeout=-1 if left_s > threading.TIMEOUT_MAX else max(0.0, left_s))
    finally:
        driver.sleep_no_more(lease_id)
