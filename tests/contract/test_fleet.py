"""The workers: dying idle, pause, drain, resize, reload, recycle, kill, overflow, lazy starts, retirement, pings."""

from __future__ import annotations

import pytest

import dspool
from tests.contract.backends import FakeBackend
from tests.contract.subject import World, beside, gather


async def test_a_worker_that_dies_idle_is_replaced_before_the_next_call_fails(world: World) -> None:
    async with world.pool() as pool:
        token = await pool.run("pid")
        world.backend.kill(token)
        assert await pool.run("pid") != token
        lost = await pool.events.wait("worker.lost")
        assert (lost["report"].reason, lost["report"].signal) == ("crash", "SIGKILL")
        stats = await pool.stats()
        assert (stats.calls_lost, stats.calls_ok) == (0, 2)
        assert stats.exits == {"crash": 1}


async def test_every_worker_that_dies_idle_is_replaced_without_a_call(world: World) -> None:
    async with world.pool(workers=2) as pool:
        await gather_runs(pool)
        for token in await pool.tokens():
            world.backend.kill(token)
        await pool.events.wait("worker.lost", 2)
        await pool.call("wait_ready", timeout_s=20)
        assert (await pool.health()).status == "healthy"
        assert await pool.run(value=1) == 1


async def gather_runs(pool: object) -> None:
    """Prove every worker of a pool of two good: one that dies before its first answer counts as a failed start."""
    from tests.contract.subject import Subject

    assert isinstance(pool, Subject)
    first, second = await pool.checkout(), await pool.checkout()
    async with first, second:
        await first.run()
        await second.run()


@pytest.mark.narrow
async def test_pause_holds_calls_back_until_resume(world: World) -> None:
    async with world.pool() as pool, beside() as calls:
        await pool.call("pause")
        call = calls.start(pool.run, value=1)
        stats = await pool.until(lambda stats: stats.waiting == 1)
        assert (stats.paused, stats.idle) == (True, 1)
        await pool.call("resume")
        assert await call.get() == 1


@pytest.mark.narrow
async def test_drain_finishes_what_was_accepted_and_takes_nothing_new(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        running = calls.start(pool.meet, gate, "ran")
        visitor = await gate.arrival()
        waiting = calls.start(pool.run, value="waited")
        await pool.until(lambda stats: stats.waiting == 1)
        assert not await pool.call("drain", timeout_s=0.01)
        with pytest.raises(dspool.PoolClosed, match="draining"):
            await pool.run()
        drained = calls.start(pool.call, "drain", timeout_s=20)
        visitor.let_go()
        assert await gather(running, waiting, drained) == ["ran", "waited", True]
        await pool.call("resume")
        assert await pool.run(value=1) == 1


@pytest.mark.narrow
async def test_resize_up_and_down(world: World) -> None:
    async with world.pool() as pool:
        await pool.call("resize", 3)
        await pool.call("wait_ready", 3, timeout_s=20)
        assert len(await pool.workers()) == 3
        await pool.call("resize", 1)
        await pool.events.wait("worker.ended", 2)
        stats = await pool.stats()
        assert (stats.workers, stats.exits) == (1, {"resized": 2})
        assert await pool.run(value=1) == 1


@pytest.mark.narrow
@pytest.mark.parametrize("replace", ["reload", "recycle"])
async def test_wait_ready_waits_for_the_replacements_too(world: World, replace: str) -> None:
    gate = world.gate()
    async with world.pool(workers=2) as pool, beside() as calls:
        old = {worker.worker_id for worker in await pool.workers()}
        running = calls.start(pool.meet, gate, "ran")
        visitor = await gate.arrival()
        if replace == "reload":
            await pool.call("reload")
        else:
            old = {min(old)}
            await pool.call("recycle", *old)
        ready = calls.start(pool.call, "wait_ready", timeout_s=20)
        visitor.let_go()  # a worker is drained before the next one is replaced
        assert await gather(running, ready) == ["ran", None]
        idle = [worker.worker_id for worker in await pool.workers() if worker.state == "idle"]
        assert idle
        assert not old.intersection(idle), "an old worker would be lent"


@pytest.mark.narrow
async def test_a_busy_worker_finishes_its_call_before_a_resize_ends_it(world: World) -> None:
    gate = world.gate()
    async with world.pool(workers=2) as pool, beside() as calls:
        both = [calls.start(pool.meet, gate, number) for number in range(2)]
        visitors = await gate.arrivals(2)
        await pool.call("resize", 1)
        await pool.events.wait("worker.draining")
        for visitor in visitors:
            visitor.let_go()
        assert await gather(*both) == [0, 1]
        await pool.events.wait("worker.ended")
        assert (await pool.stats()).exits == {"resized": 1}


async def test_reload_replaces_every_worker_and_keeps_serving(world: World) -> None:
    async with world.pool(workers=2) as pool:
        before = set(await pool.tokens())
        await pool.call("reload")
        while "reloaded" not in (exits := (await pool.stats()).exits) or exits["reloaded"] < 2:
            assert await pool.run(value=1) == 1
        assert not before & {await pool.run("pid") for _ in range(4)}
        stats = await pool.stats()
        assert stats.calls_lost == 0
        assert stats.exits == {"reloaded": 2}


@pytest.mark.narrow
async def test_recycle_replaces_one_worker(world: World) -> None:
    async with world.pool() as pool:
        before = await pool.worker()
        await pool.call("recycle", before.worker_id)
        await pool.events.wait("worker.ended", worker_id=before.worker_id)
        assert (await pool.stats()).exits == {"reloaded": 1}
        with pytest.raises(dspool.PoolError, match="has no worker 99"):
            await pool.call("recycle", 99)


async def test_kill_ends_a_worker_and_the_call_in_it(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        call = calls.start(pool.meet, gate)
        visitor = await gate.arrival()
        (worker,) = await pool.workers()
        await pool.call("kill", worker.worker_id)
        with pytest.raises(dspool.WorkerLost, match="killed") as caught:
            await call.get()
        assert caught.value.report is not None
        assert (caught.value.report.reason, caught.value.report.detail) == ("killed", "by hand")
        await visitor.gone()
        assert await pool.run(value=1) == 1


@pytest.mark.narrow
async def test_overflow_workers_start_for_waiting_calls_and_leave_when_they_are_idle(world: World) -> None:
    gate = world.gate()
    async with world.pool(overflow=1, overflow_linger_s=0.05) as pool, beside() as calls:
        both = [calls.start(pool.meet, gate) for _ in range(2)]
        visitors = await gate.arrivals(2)
        assert visitors[0].token != visitors[1].token
        assert sorted(worker.overflow for worker in await pool.workers()) == [False, True]
        for visitor in visitors:
            visitor.let_go()
        await gather(*both)
        await pool.events.wait("worker.ended")
        assert [worker.overflow for worker in await pool.workers()] == [False]
        assert (await pool.stats()).exits == {"resized": 1}


async def test_a_lazy_pool_of_two_serves_six_checkouts_at_once(world: World) -> None:
    async with world.pool(workers=2, lazy=True) as pool, beside() as calls:
        assert await pool.workers() == []
        six = [calls.start(pool.run, value=number) for number in range(6)]
        assert await gather(*six) == list(range(6))
        stats = await pool.stats()
        assert stats.started <= 2
        assert (stats.calls_ok, stats.exits, stats.rejected) == (6, {}, {})


async def test_a_waiter_on_a_lazy_pool_is_served_after_the_holder_crashed(world: World) -> None:
    gate = world.gate()
    async with world.pool(lazy=True) as pool, beside() as calls:
        holder = calls.start(pool.meet, gate)
        visitor = await gate.arrival()
        waiter = calls.start(pool.run, value="served")
        await pool.until(lambda stats: stats.waiting == 1)
        world.backend.kill(visitor.token)
        with pytest.raises(dspool.WorkerLost):
            await holder.get()
        assert await waiter.get() == "served"


@pytest.mark.narrow
async def test_a_lazy_pool_starts_no_more_than_its_calls_need(world: World) -> None:
    async with world.pool(workers=2, lazy=True) as pool:
        for number in range(3):
            assert await pool.run(value=number) == number
        assert (await pool.stats()).started == 1


@pytest.mark.narrow
async def test_a_worker_is_replaced_after_max_requests(world: World) -> None:
    async with world.pool(max_requests=2) as pool:
        for _ in range(3):
            await pool.run()
        await pool.events.wait("worker.ended")
        assert (await pool.stats()).exits == {"recycle_requests": 1}


@pytest.mark.narrow
@pytest.mark.slow
async def test_a_worker_is_replaced_after_its_lifetime(world: World) -> None:
    async with world.pool(max_lifetime_s=0.5) as pool:
        assert (await pool.events.wait("worker.ended"))["report"].reason == "recycle_age"
        assert await pool.run(value=1) == 1


@pytest.mark.narrow
@pytest.mark.slow
async def test_a_worker_that_answers_no_ping_is_replaced(world: World) -> None:
    async with world.pool(ping_interval_s=0.02, ping_timeout_s=0.1, ping_failures=2) as pool:
        token = await pool.run("pid")
        world.backend.freeze(token)
        assert (await pool.events.wait("worker.lost"))["report"].reason == "hung"
        assert await pool.run("pid") != token


@pytest.mark.only("fake")
async def test_a_fakes_ping_says_that_it_is_one(world: World) -> None:
    backend = world.backend
    assert isinstance(backend, FakeBackend)
    async with world.pool() as pool:
        worker = await pool.worker()
        assert (worker.pid, worker.start_method) == (None, "fake")
        assert backend.fakes.workers[worker.worker_id]._pong()["mock"] is True


async def test_stats_health_and_workers_say_how_it_is(world: World) -> None:
    gate = world.gate()
    async with world.pool(workers=2) as pool, beside() as calls:
        await pool.run(session="s")
        call = calls.start(pool.meet, gate)
        visitor = await gate.arrival()
        stats, health, workers = await pool.stats(), await pool.health(), await pool.workers()
        assert (stats.name, stats.target, stats.workers, stats.idle, stats.busy) == (pool.pool.name, 2, 2, 1, 1)
        assert (stats.leased, stats.waiting, stats.sessions, stats.breaker) == (1, 0, 1, "closed")
        assert (stats.checkouts, stats.granted, stats.calls_ok) == (2, 2, 1)
        assert 0 <= stats.queue_wait_s_max <= stats.queue_wait_s_sum < 20
        assert stats.start_method == world.backend.start_method
        assert (health.status, health.ready, health.target) == ("healthy", 2, 2)
        assert [worker.worker_id for worker in workers] == [1, 2]
        assert sorted(worker.state for worker in workers) == ["busy", "idle"]
        assert sum(worker.calls for worker in workers) == 1
        assert all(worker.age_s > 0 and worker.slots == 1 and worker.group == "default" for worker in workers)
        visitor.let_go()
        await call.get()
