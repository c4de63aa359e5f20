"""The user's `check` hook: may this call run in this worker? It is asked in the caller, once there is a slot."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from traceback import format_exc
from typing import Any

from dspool.errors import PoolError
from dspool.pool.call_errors import queue_timeout
from dspool.pool.core import refusals
from dspool.pool.core.records import Lease as LeaseRecord
from dspool.pool.driver import Driver
from dspool.pool.steps import HOOK, LATE, Steps
from dspool.signals import let_through
from dspool.types import CheckoutRequest, Keep, Remove, Skip, Verdict


def ask_hook(driver: Driver, lease: LeaseRecord, limit: float) -> Steps[Verdict]:
    """The user's check hook, in the caller. Whatever goes wrong in it means REMOVE, with the reason.

    Where it can't be called at all, for want of a thread, nothing is known against the worker: the call alone fails.

    Raises:
        QueueTimeout: there was no verdict before `limit`.
        PoolError: it can't be called.
    """
    check = driver.options.check
    assert check is not None
    assert lease.worker_id is not None
    request = CheckoutRequest(
        pool=driver.name,
        lease_id=lease.lease_id,
        program=lease.program,
        session=lease.session,
        require=lease.require,
        priority=lease.priority,
        removals=len(lease.removed),
    )
    worker = driver.worker_info(lease.worker_id)
    if worker is None:
        return Remove("its process is gone")
    begun = False

    def ask() -> Any:
        nonlocal begun
        begun = True
        return check(worker, request)

    try:
        verdict = yield (HOOK, ask, limit)
    except Exception as error:
        let_through(error)
        if not begun:
            if isinstance(error, PoolError):
                raise
            raise PoolError(f"pool {driver.name!r} can't call its check hook: {error}") from error
        said = _read(repr, error)
        driver.report("hook.failed", hook="check", worker_id=lease.worker_id, error=said, traceback=format_exc())
        verdict = Remove(f"the check hook raised {type(error).__name__}: {_read(str, error)}")
    if verdict is LATE or time.monotonic() >= limit:
        raise queue_timeout(driver, lease, partial(refusals.hook_late, lease.worker_id))
    if isinstance(verdict, Keep) or (isinstance(verdict, (Remove, Skip)) and isinstance(verdict.reason, str)):
        return verdict
    return Remove(f"the check hook returned {_read(repr, verdict):.80} instead of KEEP, Remove(...) or Skip(...)")


def _read(text: Callable[[Any], str], thing: Any) -> str:
    """str() or repr() of what a hook gave, which is the user's code too."""
    try:
        return text(thing)
    except Exception as error:
        let_through(error)
        return f"<a {type(thing).__name__} that can't be shown>"
