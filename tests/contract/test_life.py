"""Opening and closing: in each state, twice, before and after; starts that fail; two pools beside each other."""

from __future__ import annotations

import time
from typing import Any

import pytest

import dspool
from dspool.testing.scripted import behave
from tests.contract.backends import DEADLINE_S
from tests.contract.subject import World, beside, gather


async def test_open_returns_when_all_workers_are_ready_and_close_ends_them(world: World) -> None:
    pool = world.make(workers=2)
    await pool.call("open")
    assert (await pool.health()).ready == 2
    await pool.call("close")
    stats = await pool.stats()
    assert (stats.workers, stats.exits) == (0, {"stopped": 2})
    assert await pool.workers() == []
    assert "pool.closed" in pool.events.names()
    pool.events.close()


@pytest.mark.narrow
async def test_min_ready_opens_early(world: World) -> None:
    async with world.pool(workers=3, min_ready=1) as pool:
        assert (await pool.health()).ready >= 1
        await pool.call("wait_ready", timeout_s=20)
        assert (await pool.health()).ready == 3


@pytest.mark.narrow
async def test_use_before_open_and_after_close_raises_pool_closed(world: World) -> None:
    pool = world.make()
    is_async = isinstance(pool.pool, dspool.AsyncPool)
    opened_by = "use `async with`, or await open" if is_async else "use `with`, or call open"
    with pytest.raises(dspool.PoolClosed, match=f"not open; {opened_by}"):
        await pool.run()
    with pytest.raises(dspool.PoolClosed):
        await pool.stats()
    await pool.call("close")
    await pool.call("open")
    await pool.call("close")
    uses: list[tuple[Any, ...]] = [("run", behave, {}), ("checkout",), ("pause",), ("resize", 2), ("drain",)]
    for method, *arguments in uses:
        with pytest.raises(dspool.PoolClosed, match="closed"):
            await pool.call(method, *arguments)
    with pytest.raises(dspool.PoolClosed):
        await pool.call("wait_ready")
    assert (await pool.stats()).workers == 0
    pool.events.close()


@pytest.mark.narrow
async def test_a_pool_is_opened_once_and_closed_as_often_as_you_like(world: World) -> None:
    pool = world.make()
    await pool.call("open")
    with pytest.raises(dspool.PoolError, match="opened before"):
        await pool.call("open")
    await pool.call("close")
    await pool.call("close")
    with pytest.raises(dspool.PoolError, match="opened before"):
        await pool.call("open")
    pool.events.close()


async def test_closing_refuses_what_is_queued_and_waits_for_what_runs(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        running = calls.start(pool.meet, gate, "ran")
        visitor = await gate.arrival()
        queued = calls.start(pool.run)
        await pool.until(lambda stats: stats.waiting == 1)
        closing = calls.start(pool.call, "close", 20.0)
        with pytest.raises(dspool.PoolClosed, match="was not run"):
            await queued.get()
        visitor.let_go()
        assert await gather(running, closing) == ["ran", None]
        assert (await pool.stats()).exits == {"stopped": 1}


async def test_a_call_that_outlasts_the_grace_is_killed(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        running = calls.start(pool.meet, gate)
        visitor = await gate.arrival()
        begun = time.monotonic()
        await pool.call("close", 0.05)
        assert time.monotonic() - begun < DEADLINE_S / 4
        with pytest.raises(dspool.PoolClosed, match="it may have run"):
            await running.get()
        await visitor.gone()


@pytest.mark.narrow
async def test_two_closes_at_once_both_return(world: World) -> None:
    async with world.pool() as pool, beside() as calls:
        await gather(*(calls.start(pool.call, "close") for _ in range(3)))
        assert (await pool.stats()).workers == 0


@pytest.mark.narrow
async def test_close_while_workers_start(world: World) -> None:
    async with world.pool(workers=2, min_ready=0) as pool:
        await pool.call("close", 0.0)
        assert (await pool.stats()).workers == 0


@pytest.mark.narrow
async def test_close_while_paused_and_while_draining(world: World) -> None:
    for order in ("pause", "drain"):
        async with world.pool() as pool:
            await pool.call(order)
            await pool.call("close")
            assert (await pool.stats()).workers == 0


@pytest.mark.narrow
async def test_two_pools_of_one_name_do_not_know_each_other(world: World) -> None:
    async with world.pool(name="twin") as first:
        mine = await first.run("pid")
        async with world.pool(name="twin") as second:
            assert await second.run(value=2) == 2
            if world.backend.name != "fake":
                assert await second.run("pid") != mine
        assert await first.run("pid") == mine


@pytest.mark.only("fake", "scripted")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("boot_error", "ImportError: no luck"),
        ("exit", "exit code 3"),
        ("crash", "SIGKILL"),
        ("garbage", "length header seems to be missing"),
    ],
)
@pytest.mark.slow
async def test_open_raises_as_soon_as_a_worker_cannot_start(world: World, fault: str, message: str) -> None:
    pool = world.make(workers=2, faults=(None, fault), start_timeout_s=60)
    begun = time.monotonic()
    with pytest.raises(dspool.WorkerStartError, match=message) as caught:
        await pool.call("open")
    assert time.monotonic() - begun < 10
    assert caught.value.report is not None
    assert caught.value.report.reason == "boot_error"
    assert (caught.value.remote_traceback is not None) == (fault == "boot_error")
    assert (await pool.stats()).workers == 0
    pool.events.close()


@pytest.mark.only("fake")
async def test_a_worker_that_never_gets_ready_is_given_up(world: World) -> None:
    from dspool.testing.fake import FakeLauncher, Hang

    pool = world.make(start_timeout_s=0.05, launcher=FakeLauncher(boot=lambda worker_id: Hang()))
    with pytest.raises(dspool.WorkerStartError, match=r"start_timeout.*not ready within start_timeout_s=0\.05"):
        await pool.call("open")
    pool.events.close()


@pytest.mark.only("fake", "scripted")
@pytest.mark.narrow
async def test_a_pool_whose_workers_cannot_start_any_more_says_so_at_once(world: World) -> None:
    faults = ("boot_error",) * 20
    async with world.pool(lazy=True, faults=faults, max_restarts=1, restart_window_s=60) as pool:
        begun = time.monotonic()
        with pytest.raises(dspool.PoolBroken, match="starts are stopped") as caught:
            await pool.run()
        assert time.monotonic() - begun < 10
        assert [report.reason for report in caught.value.reports] == ["boot_error"] * 2
        with pytest.raises(dspool.PoolBroken):
            await pool.run()
        assert (await pool.health()).status == "unhealthy"
        assert (await pool.stats()).breaker == "open"
        with pytest.raises(dspool.WorkerStartError):
            await pool.call("wait_ready", 1)


@pytest.mark.narrow
async def test_wait_ready_gives_up_after_its_time(world: World) -> None:
    async with world.pool(lazy=True) as pool:
        with pytest.raises(dspool.QueueTimeout, match="0 of 1 workers ready"):
            await pool.call("wait_ready", 1, timeout_s=0.02)


@pytest.mark.only("fake")
async def test_options_are_checked_before_anything_starts(world: World) -> None:
    with pytest.raises(dspool.OptionsError, match="workers"):
        world.make(workers=-1)
    with pytest.raises(dspool.OptionsError, match="unknown option 'wrokers'"):
        world.make(wrokers=1)


@pytest.mark.narrow
async def test_a_pool_that_is_left_by_an_exception_is_closed(world: World) -> None:
    with pytest.raises(ZeroDivisionError):
        async with world.pool() as pool:
            raise ZeroDivisionError
    assert (await pool.stats()).workers == 0
