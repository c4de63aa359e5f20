"""What is specific to AsyncPool: it belongs to its loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import dspool
from dspool.testing.fake import FakeLauncher, Hang
from dspool.testing.pytest_plugin import MakeAsyncPool


def echo(**inputs: Any) -> Any:
    """A program; the fake answers in its place."""
    return inputs


def fakes() -> FakeLauncher:
    """Workers that echo."""
    return FakeLauncher(lambda call: call.inputs)


def test_use_from_another_loop_or_thread_raises(make_async_pool: MakeAsyncPool) -> None:
    errors: list[BaseException] = []

    async def main() -> None:
        async with make_async_pool(workers=1, launcher=fakes()) as pool:

            async def elsewhere() -> None:
                for use in (lambda: pool.run(echo, {}), pool.checkout, pool.pause, pool.close):
                    try:
                        await use()
                    except dspool.PoolError as error:
                        errors.append(error)

            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            await asyncio.to_thread(thread.join)
            assert await pool.run(echo, {"value": 1}) == {"value": 1}

    asyncio.run(main())
    assert len(errors) == 4
    assert all("belongs to the event loop that opened it" in str(error) for error in errors)


def test_open_and_close_may_come_from_different_tasks(make_async_pool: MakeAsyncPool) -> None:
    async def main() -> None:
        pool = make_async_pool(workers=1, launcher=fakes())
        await asyncio.create_task(pool.open())
        assert await pool.run(echo, {"value": 1}) == {"value": 1}
        await asyncio.create_task(pool.close())
        assert (await pool.stats()).workers == 0

    asyncio.run(main())


def test_a_loop_that_ends_takes_its_pool_with_it(make_async_pool: MakeAsyncPool) -> None:
    launcher = fakes()

    async def main() -> None:
        await dspool.AsyncPool(workers=2, launcher=launcher).open()

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert "was never closed" in str(seen[0].message)
    assert all(worker.status is not None for worker in launcher.workers.values())


def test_a_pool_nobody_refers_to_warns_and_ends(make_async_pool: MakeAsyncPool) -> None:
    launcher = fakes()

    async def main() -> None:
        pool = await dspool.AsyncPool(workers=1, launcher=launcher).open()
        assert pool._control is not None
        over = pool._control.driver.over
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            del pool
            gc.collect()
        assert ["was never closed" in str(each.message) for each in seen] == [True]
        assert await asyncio.to_thread(over.wait, 20)

    asyncio.run(main())
    assert all(worker.status is not None for worker in launcher.workers.values())


def test_cancelling_open_leaves_nothing(make_async_pool: MakeAsyncPool) -> None:
    async def main() -> None:
        booting, loop = asyncio.Event(), asyncio.get_running_loop()

        def boot(worker_id: int) -> Hang:
            loop.call_soon_threadsafe(booting.set)
            return Hang()

        pool = make_async_pool(workers=2, launcher=FakeLauncher(boot=boot))
        opening = asyncio.create_task(pool.open())
        await booting.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert (await pool.stats()).workers == 0

    asyncio.run(main())


def test_uvloop_will_do(pool_name: Callable[[], str]) -> None:  # it keeps two descriptors: no_leaks would complain
    uvloop = pytest.importorskip("uvloop")

    async def main() -> list[Any]:
        async with dspool.AsyncPool(name=pool_name(), workers=2, launcher=fakes()) as pool:
            return [value async for value in pool.map(echo, [{"n": number} for number in range(10)])]

    assert uvloop.run(main()) == [{"n": number} for number in range(10)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_drain_ends_with_its_pool_though_somebody_keeps_a_lease(make_async_pool: MakeAsyncPool, backend: str) -> None:
    ends: list[str] = []

    async def main() -> None:
        pool = await make_async_pool(workers=1, launcher=fakes()).open()
        lease = await pool.checkout()

        async def drain() -> None:
            with pytest.raises(dspool.PoolClosed):
                await pool.drain()
            ends.append("told")

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(drain)
                await anyio.wait_all_tasks_blocked()
                await pool.close(0.0)
        await lease.close()

    anyio.run(main, backend=backend)
    assert ends == ["told"]
