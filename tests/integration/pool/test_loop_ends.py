"""An event loop that ends at any step of what an AsyncPool does: nothing hangs, nothing stays, one line says it."""

from __future__ import annotations

import asyncio
import gc
import io
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import dspool
from dspool.testing.fake import FakeLauncher
from dspool.testing.pytest_plugin import Census

STEPS = 12
"""Turns of the loop before it ends. From the last of them on each of these has come to rest."""
DEADLINE_S = 20.0
Use = Callable[[dspool.AsyncPool], Awaitable[Any]]


def echo(**inputs: Any) -> Any:
    """A program; the fake answers in its place."""
    return inputs


async def map_rows(pool: dspool.AsyncPool) -> None:
    """Run a map to its end."""
    async for _ in pool.map(echo, ({"n": number} for number in range(20))):
        pass


async def lease(pool: dspool.AsyncPool) -> None:
    """Hold a lease for a run."""
    async with await pool.checkout() as held:
        await held.run(echo, {})


USES: dict[str, Use] = {
    "run": lambda pool: pool.run(echo, {}),
    "map": map_rows,
    "lease": lease,
    "drain": lambda pool: pool.drain(),
    "resize": lambda pool: pool.resize(5),
    "reload": lambda pool: pool.reload(),
    "kill": lambda pool: pool.kill(1),
    "wait_ready": lambda pool: pool.wait_ready(2),
}


def said_when_it_ends(main: Callable[[list[Any]], Any]) -> list[str]:
    """Every warning of asyncio.run(main) and of what is collected after it; it holds what it puts into its argument."""
    held: list[Any] = []
    stderr, sys.stderr = sys.stderr, io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            asyncio.run(main(held))
            pool, deadline = weakref.ref(held[0]), time.monotonic() + DEADLINE_S
            held.clear()
            # A thread that takes a map's rows may hold it a little longer; a warning holds what it is about.
            while pool() is not None and not seen:
                assert time.monotonic() < deadline
                gc.collect()
                threading.Event().wait(0.001)
        assert sys.stderr.getvalue() == ""
    finally:
        sys.stderr = stderr
    return [str(each.message) for each in seen]


@pytest.mark.parametrize("steps", range(STEPS))
def test_a_loop_may_end_at_any_step_of_open(steps: int) -> None:
    launcher, before = FakeLauncher(lambda call: call.inputs), Census()

    async def main(held: list[Any]) -> None:
        pool = dspool.AsyncPool(workers=2, launcher=launcher)
        held.extend([pool, asyncio.create_task(pool.open())])
        for _ in range(steps):
            await asyncio.sleep(0)

    said = said_when_it_ends(main)
    assert [line for line in said if "was never closed" not in line] == []
    assert before.settled() == []
    assert all(worker.status is not None for worker in launcher.workers.values())


@pytest.mark.parametrize("use", USES)
def test_a_loop_may_end_at_any_step_of_a_use(use: str) -> None:
    before = Census()
    for steps in range(STEPS):
        launcher = FakeLauncher(lambda call: call.inputs)

        async def main(held: list[Any], steps: int = steps, launcher: FakeLauncher = launcher) -> None:
            pool = await dspool.AsyncPool(workers=2, launcher=launcher).open()
            held.extend([pool, asyncio.ensure_future(USES[use](pool))])
            for _ in range(steps):
                await asyncio.sleep(0)

        (said,) = said_when_it_ends(main)
        assert "was never closed; its workers were killed" in said
        assert before.settled() == []
        assert all(worker.status is not None for worker in launcher.workers.values())


def test_in_another_loop_the_loop_is_named_and_not_how_the_pool_broke() -> None:
    async def opened(held: list[Any]) -> None:
        held.append(dspool.AsyncPool(workers=1, launcher=FakeLauncher(lambda call: call.inputs)))
        await held[0].open()

    async def used() -> None:
        with pytest.raises(dspool.PoolError, match="belongs to the event loop that opened it") as caught:
            await held[0].run(echo, {})
        assert type(caught.value) is dspool.PoolError

    def forgotten() -> None:
        held.clear()
        gc.collect()

    held: list[Any] = []
    asyncio.run(opened(held))
    asyncio.run(used())
    with pytest.warns(ResourceWarning, match="was never closed"):
        forgotten()
