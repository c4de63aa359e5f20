"""What the errors of a call say: its own times, and advice that fits them."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any

import pytest

from dspool.options import PoolOptions
from dspool.pool.call_errors import describe, timed_out
from dspool.pool.core.records import Lease
from dspool.pool.core.refusals import granted_late
from dspool.pool.driver import Driver
from dspool.types import ExitReport

pytestmark = pytest.mark.unit


def said(*, created_s: float, granted_s: float, run_s: float) -> str:
    """The text of a CallTimeout, with how long ago the lease was made and granted, and its run began."""
    now = time.monotonic()
    lease = Lease(1, 1, now - created_s, granted_at=now - granted_s, run_since=now - run_s)
    program: Any = SimpleNamespace(label="a program")
    steps = timed_out(Driver(PoolOptions(workers=1, slots=2), lambda: None), 7, program, lease)
    with pytest.raises(StopIteration) as end:
        next(steps)
    return str(end.value.value)


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (
            {"created_s": 3.0, "granted_s": 2.0, "run_s": 2.0},
            r"3\.\d+ s after the call, 2\.\d+ s .*more time with timeout_s",
        ),
        (
            {"created_s": 4.0, "granted_s": 0.1, "run_s": 0.1},
            r"4\.\d+ s after the call, 0\.1\d+ s .*add workers, or bound it",
        ),
        (
            {"created_s": 600.0, "granted_s": 600.0, "run_s": 1.0},
            r"1\.\d+ s after the call, 1\.\d+ s of them in worker 7,",
        ),
    ],
    ids=["a long run", "a long wait", "a run in a lease that was held for long"],
)
def test_a_timeout_says_where_this_calls_time_went(ago: dict[str, float], text: str) -> None:
    assert re.search(text, said(**ago))


def test_an_end_is_told_once() -> None:
    crash = ExitReport(worker_id=1, pid=7, reason="crash", signal="SIGSEGV", detail="killed by SIGSEGV", calls=1)
    assert describe(crash) == "crash (SIGSEGV), pid 7, 0.0 s old, in its call number 1"
    left = ExitReport(worker_id=1, pid=7, reason="exited", exit_code=3, detail="exit code 3; no stack dump", calls=1)
    assert describe(left).endswith("in its call number 1; exit code 3; no stack dump")


def test_a_call_that_got_its_worker_too_late_is_told_so() -> None:
    refusal = granted_late(0.25)
    assert refusal.code == "QueueTimeout"
    assert "only when its deadline was over, 0.250 s after the call; it was not sent" in refusal.message
