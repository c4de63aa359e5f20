"""What an adversary tried on a real Pool: each test is an attack that held, or a bug that it found (xfail, strict)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import dspool
from dspool.pool.core import invariants
from dspool.testing.pytest_plugin import MakePool
from tests.integration.pool.conftest import RunScript

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.chaos]

ECHO = "builtins:dict"


@pytest.mark.xfail(strict=True, reason="priority is not checked; two queued calls with 0 and 'x' break the whole pool")
@pytest.mark.parametrize("priority", ["x", None, float("nan")])
def test_a_priority_that_is_no_number_is_refused(make_pool: MakePool, priority: Any) -> None:
    pool = make_pool(workers=1)
    with pytest.raises(dspool.OptionsError):
        pool.run(ECHO, {"x": 1}, priority=priority)


@pytest.mark.xfail(strict=True, reason="not checked; such a worker never counts as ended")
def test_a_reason_that_is_no_string_is_refused(make_pool: MakePool) -> None:
    reason: Any = 5
    with make_pool(workers=1).checkout() as lease:
        try:
            with pytest.raises((TypeError, dspool.OptionsError)):
                lease.remove(reason)
        finally:
            lease.remove("the test is over")


@pytest.mark.xfail(strict=True, reason="only an Exception of the rows reaches the caller; these end the map silently")
@pytest.mark.parametrize("error", [asyncio.CancelledError, StopAsyncIteration])
def test_no_row_is_lost_without_an_error(make_pool: MakePool, error: type[BaseException]) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"x": 1}
        raise error

    with pytest.raises(BaseException, match=r".*"):
        list(make_pool(workers=1).map(ECHO, rows()))


@pytest.mark.xfail(strict=True, reason="each wait_ready() leaves a waker that only the fleet's next change takes away")
def test_asking_whether_workers_are_ready_keeps_nothing(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    for _ in range(1000):
        pool.wait_ready()
    assert len(pool._driver.changed) < 1000


@pytest.mark.xfail(strict=True, reason="repr() of WorkerGroup and PoolOptions shows env's values")
def test_a_secret_in_env_is_not_shown() -> None:
    group = dspool.WorkerGroup(name="a", workers=1, env={"KEY": "sk-hidden"})
    assert "sk-hidden" not in repr(group)


MAP_IN_ANYIO = """
import threading, os
import anyio, dspool

threading.Timer(10, os._exit, (3,)).start()

async def main():
    with dspool.Pool(workers=1) as pool:
        rows = list(pool.map("builtins:dict", [{"x": 1}]))
    os._exit(0 if rows == [{"x": 1}] else 4)

anyio.run(main)
"""


@pytest.mark.xfail(strict=True, reason="the map's thread inherits sniffio's variable, anyio.run refuses, list() hangs")
def test_a_blocking_map_works_below_anyio_run(script: RunScript) -> None:
    assert script(MAP_IN_ANYIO).process.wait(timeout=30) == 0


NO_DESCRIPTORS = """
import os, resource, threading
import dspool

threading.Timer(10, os._exit, (3,)).start()
def is_free(fd):
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False

free = [fd for fd in range(200) if is_free(fd)]  # three: enough for the pool's own pair, not for a loop
resource.setrlimit(resource.RLIMIT_NOFILE, (free[3], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    dspool.Pool(workers=1).open()
except (OSError, dspool.DspoolError):
    os._exit(0)
os._exit(4)
"""


@pytest.mark.xfail(strict=True, reason="the control thread can't make its loop and dies; open() waits for it for ever")
def test_open_fails_where_no_descriptor_is_left(script: RunScript) -> None:
    assert script(NO_DESCRIPTORS).process.wait(timeout=30) == 0


def test_a_worker_that_closes_its_descriptors_costs_only_its_own_call(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)

    def close_all() -> None:
        import os

        os.closerange(3, 200)

    with pytest.raises(dspool.WorkerLost):
        pool.run(close_all, {})
    assert pool.run(ECHO, {"x": 1}) == {"x": 1}
    assert invariants.check(pool._driver.core) is None  # type: ignore[func-returns-value]


def test_twenty_threads_close_a_pool_that_runs_calls(make_pool: MakePool) -> None:
    pool = make_pool(workers=2)
    values: list[Any] = []
    with pool.checkout() as lease:
        closing = [threading.Thread(target=pool.close) for _ in range(20)]
        for thread in closing:
            thread.start()
        values.append(lease.run(ECHO, {"x": 1}))
    for thread in closing:
        thread.join()
    assert values == [{"x": 1}]
    assert repr(pool).endswith("closed, 2 workers>")
