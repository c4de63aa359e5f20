"""Workers with several slots: calls beside each other in one process, and slots that were given up."""

from __future__ import annotations

import anyio
import pytest

import dspool
from tests.contract.backends import SHORT_S
from tests.contract.subject import World, beside, gather


async def test_calls_run_beside_each_other_in_one_worker(world: World) -> None:
    gate = world.gate()
    async with world.pool(slots=2) as pool, beside() as calls:
        both = [calls.start(pool.meet, gate, number) for number in range(2)]
        visitors = await gate.arrivals(2)
        assert visitors[0].token == visitors[1].token
        stats = await pool.stats()
        assert (stats.leased, stats.workers) == (2, 1)
        assert (await pool.worker()).busy == 2
        for visitor in visitors:
            visitor.let_go()
        assert await gather(*both) == [0, 1]


@pytest.mark.narrow
async def test_calls_spread_over_workers_before_they_share_one(world: World) -> None:
    gate = world.gate()
    async with world.pool(workers=2, slots=2) as pool, beside() as calls:
        both = [calls.start(pool.meet, gate) for _ in range(2)]
        visitors = await gate.arrivals(2)
        assert visitors[0].token != visitors[1].token
        for visitor in visitors:
            visitor.let_go()
        await gather(*both)


@pytest.mark.slow
async def test_a_slot_given_up_at_a_deadline_is_lent_again_when_its_late_answer_came(world: World) -> None:
    gate = world.gate()
    async with world.pool(slots=2, grace_s=20) as pool, beside() as calls:
        await pool.run()  # the program is loaded: its time is not the call's
        before = await pool.tokens()
        late = calls.start(pool.meet, gate, "late", timeout_s=SHORT_S)
        visitor = await gate.arrival()
        with pytest.raises(dspool.CallTimeout, match="this one's slot was given up") as caught:
            await late.get()
        assert caught.value.report is None
        assert await pool.run(value="neighbour") == "neighbour"
        visitor.let_go()
        both = [calls.start(pool.meet, gate, number) for number in range(2)]  # both slots are lent again
        for each in await gate.arrivals(2):
            each.let_go()
        assert await gather(*both) == [0, 1]
        assert await pool.tokens() == before
        assert (await pool.stats()).exits == {}


@pytest.mark.slow
async def test_a_worker_whose_given_up_call_does_not_end_is_replaced_after_its_neighbours_finished(
    world: World,
) -> None:
    gate = world.gate()
    async with world.pool(slots=2, grace_s=0.1) as pool, beside() as calls:
        await pool.run()  # the program is loaded: its time is not the call's
        stuck = calls.start(pool.meet, gate, timeout_s=SHORT_S)
        first = await gate.arrival()
        neighbour = calls.start(pool.meet, gate, "neighbour")
        second = await gate.arrival()
        with pytest.raises(dspool.CallTimeout):
            await stuck.get()
        await pool.events.wait("worker.draining")
        second.let_go()
        assert await neighbour.get() == "neighbour"
        assert (await pool.events.wait("worker.ended"))["report"].reason == "timeout"
        assert await pool.run("pid") != first.token


async def test_a_worker_that_dies_takes_all_its_calls_with_it(world: World) -> None:
    gate = world.gate()
    async with world.pool(slots=2) as pool, beside() as calls:
        both = [calls.start(pool.meet, gate) for _ in range(2)]
        visitors = await gate.arrivals(2)
        world.backend.kill(visitors[0].token)
        for call in both:
            with pytest.raises(dspool.WorkerLost):
                await call.get()
        assert await pool.run(value=1) == 1
        assert (await pool.stats()).calls_lost == 2


@pytest.mark.only("asyncio", "trio")
async def test_a_cancelled_call_spares_its_neighbour(world: World) -> None:
    gate = world.gate()
    async with world.pool(slots=2, grace_s=20) as pool, beside() as calls:
        neighbour = calls.start(pool.meet, gate, "neighbour")
        first = await gate.arrival()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.meet, gate)
            second = await gate.arrival()
            tasks.cancel_scope.cancel()
        first.let_go()
        assert await neighbour.get() == "neighbour"
        second.let_go()
        assert await pool.run(value=1) == 1
        assert (await pool.stats()).exits == {}


@pytest.mark.slow
async def test_a_timed_out_run_in_a_lease_gives_its_slot_back_when_the_answer_came(world: World) -> None:
    gate = world.gate()
    async with world.pool(slots=2, grace_s=20) as pool, beside() as calls:
        await pool.run()  # the program is loaded: its time is not the call's
        lease = await pool.checkout()
        assert await lease.run(value=1) == 1
        run = calls.start(lease.run, "meet", path=gate.path, timeout_s=SHORT_S)
        visitor = await gate.arrival()
        with pytest.raises(dspool.CallTimeout):
            await run.get()
        await lease.close()
        visitor.let_go()
        first, second = await pool.checkout(), await pool.checkout()
        async with first, second:
            assert [await first.run(value=1), await second.run(value=2)] == [1, 2]
        assert (await pool.stats()).exits == {}


@pytest.mark.narrow
@pytest.mark.slow
async def test_a_lease_past_hold_s_costs_its_worker(world: World) -> None:
    gate = world.gate()
    async with world.pool(slots=2) as pool, beside() as calls:
        await pool.run()  # the program is loaded: its time is not the call's
        lease = await pool.checkout(hold_s=SHORT_S)
        run = calls.start(lease.run, "meet", path=gate.path)
        visitor = await gate.arrival()
        with pytest.raises(dspool.WorkerLost, match="hold_s") as caught:
            await run.get()
        assert caught.value.report is not None
        assert caught.value.report.reason == "timeout"
        await lease.close()
        assert await pool.run("pid") != visitor.token


async def test_a_slot_whose_pipe_ended_costs_the_worker(world: World) -> None:
    async with world.pool(slots=2) as pool:
        token = (await pool.tokens())[0]
        with pytest.raises(dspool.WorkerLost):
            await pool.run("end_slot")
        assert await pool.run("pid") != token
