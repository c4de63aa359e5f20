"""What an adversary tried on a real Pool: attacks that held, and bugs that it found and that are mended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import dspool
from dspool.pool.core import invariants
from dspool.testing.pytest_plugin import MakePool
from tests.integration.pool.conftest import RunScript

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.chaos]

ECHO = "builtins:dict"


@pytest.mark.parametrize("priority", ["x", None, float("nan")])
def test_a_priority_that_is_no_number_is_refused(make_pool: MakePool, priority: Any) -> None:
    pool = make_pool(workers=1)
    with pytest.raises(dspool.OptionsError):
        pool.run(ECHO, {"x": 1}, priority=priority)


def test_a_reason_that_is_no_string_is_refused(make_pool: MakePool) -> None:
    reason: Any = 5
    with make_pool(workers=1).checkout() as lease:
        try:
            with pytest.raises((TypeError, dspool.OptionsError)):
                lease.remove(reason)
        finally:
            lease.remove("the test is over")


@pytest.mark.parametrize("error", [asyncio.CancelledError, StopAsyncIteration])
def test_no_row_is_lost_without_an_error(make_pool: MakePool, error: type[BaseException]) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"x": 1}
        raise error

    with pytest.raises(BaseException, match=r".*"):
        list(make_pool(workers=1).map(ECHO, rows()))


def test_asking_whether_workers_are_ready_keeps_nothing(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    for _ in range(1000):
        pool.wait_ready()
    assert len(pool._driver.changed) < 1000


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


def wait_for(path: str) -> str:
    """Run until somebody opens the other end of this FIFO: a call that a test lets go of."""
    with open(path, encoding="utf-8"):
        return "let go"


def test_a_lease_closed_in_the_middle_of_its_call_lends_nobody_its_slot(make_pool: MakePool, tmp_path: Path) -> None:
    never = tmp_path / "never"
    os.mkfifo(never)
    pool = make_pool(workers=1)
    lease = pool.checkout()
    first = lease.worker
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(lease.run, wait_for, {"path": str(never)}, timeout_s=20)
        while not lease._running.locked() or lease._pipe.asked is None:
            assert not running.done()
        lease.close()
        assert pool.run(ECHO, {"x": 1}, timeout_s=20) == {"x": 1}, "from another worker, not the late answer"
        with pytest.raises(dspool.DspoolError):
            running.result(timeout=20)
    assert first is not None
    assert [worker.worker_id for worker in pool.workers()] != [first.worker_id]


def test_a_lease_that_expires_while_it_sends_ends_with_a_typed_error(make_pool: MakePool) -> None:
    pool = make_pool(workers=2)
    inputs = {"x": "y" * 3_000_000}
    for _ in range(10):
        with pool.checkout(hold_s=0.02) as lease, contextlib.suppress(dspool.DspoolError):
            while True:
                lease.run(ECHO, inputs)


def test_a_program_deleted_while_it_runs_in_a_lease_still_answers(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(workers=1)
    go = tmp_path / "go"
    os.mkfifo(go)
    pool.create_program("waiter", wait_for)
    with ThreadPoolExecutor(1) as threads, pool.checkout() as lease:
        running = threads.submit(lease.run, "waiter", {"path": str(go)}, timeout_s=20)
        while lease._pipe.asked is None:
            assert not running.done()
        pool.delete_program("waiter")
        go.write_text("")  # returns when the call has begun, and lets it go
        assert running.result(timeout=20) == "let go"


def test_wait_ready_waits_for_the_size_that_the_pool_has_now(make_pool: MakePool) -> None:
    pool = make_pool(workers=2)
    pool.resize(1)
    pool.wait_ready(timeout_s=20)
    with pytest.raises(dspool.OptionsError, match="0 to 1"):
        pool.wait_ready(2)
