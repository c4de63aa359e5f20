"""Sessions: calls with one key go to one worker, in three degrees of strength."""

from __future__ import annotations

from typing import Literal

import pytest

import dspool
from tests.contract.subject import World, beside, gather

pytestmark = pytest.mark.narrow

Strict = Literal["strict", "strict_fail_fast"]


async def test_a_sessions_calls_find_what_it_left_in_its_worker(world: World) -> None:
    async with world.pool(workers=2) as pool:
        first, _ = await pool.run("count", session="a")
        await pool.run("count", session="b")
        assert await pool.run("count", session="a") == [first, 2] or (await pool.stats()).sessions == 2
        tokens = {(await pool.run("count", session="a"))[0] for _ in range(3)}
        assert tokens == {first}
        stats = await pool.stats()
        assert (stats.sessions, stats.spills, stats.repins) == (2, 0, 0)


async def test_a_hint_moves_on_when_its_worker_stays_busy(world: World) -> None:
    gate = world.gate()
    async with world.pool(workers=2, affinity_wait_s=0.02) as pool, beside() as calls:
        held = calls.start(pool.meet, gate, session="s")
        holder = await gate.arrival()
        moved = await pool.run("pid", session="s")
        assert moved != holder.token
        holder.let_go()
        await held.get()
        assert await pool.run("pid", session="s") == moved  # the session moved with the call
        assert (await pool.stats()).spills == 1


async def test_strict_waits_for_its_worker(world: World) -> None:
    gate = world.gate()
    async with world.pool(workers=2, affinity="strict") as pool, beside() as calls:
        held = calls.start(pool.meet, gate, session="s")
        holder = await gate.arrival()
        waits = calls.start(pool.run, "pid", session="s")
        await pool.until(lambda stats: stats.waiting == 1)
        assert await pool.run("pid") != holder.token  # the other worker is idle all the while
        holder.let_go()
        assert await gather(held, waits) == [None, holder.token]


async def test_strict_fail_fast_does_not_wait(world: World) -> None:
    gate = world.gate()
    async with world.pool(workers=2) as pool, beside() as calls:
        held = calls.start(pool.meet, gate, session="s")
        holder = await gate.arrival()
        with pytest.raises(dspool.SessionBusy, match="which is busy") as caught:
            await pool.run(session="s", affinity="strict_fail_fast")
        assert caught.value.retryable
        holder.let_go()
        await held.get()
        assert await pool.run("pid", session="s", affinity="strict_fail_fast") == holder.token


async def test_first_calls_of_one_session_do_not_split(world: World) -> None:
    gate = world.gate()
    async with world.pool(workers=2, affinity="strict") as pool, beside() as calls:
        both = [calls.start(pool.meet, gate, session="s") for _ in range(2)]
        first = await gate.arrival()
        await pool.until(lambda stats: stats.waiting == 1)
        first.let_go()
        second = await gate.arrival()
        second.let_go()
        await gather(*both)
        assert first.token == second.token


async def test_a_session_whose_worker_died_goes_on_and_can_see_it(world: World) -> None:
    async with world.pool() as pool:
        token, _ = await pool.run("count", session="s")
        async with await pool.checkout(session="s") as lease:
            assert not lease.lease.session_restarted
        world.backend.kill(token)
        await pool.events.wait("worker.lost")
        async with await pool.checkout(session="s") as lease:
            assert lease.lease.session_restarted
            assert (await lease.run("count"))[1] == 1
        async with await pool.checkout(session="s") as lease:
            assert not lease.lease.session_restarted
        assert (await pool.stats()).repins == 1


async def test_on_session_lost_error_raises_once(world: World) -> None:
    async with world.pool() as pool:
        token = await pool.run("pid", session="s", on_session_lost="error")
        world.backend.kill(token)
        await pool.events.wait("worker.lost")
        with pytest.raises(dspool.SessionLost, match="lost the worker of session 's'"):
            await pool.run(session="s", on_session_lost="error")
        assert await pool.run("pid", session="s", on_session_lost="error") != token


async def test_a_strict_session_whose_worker_is_removed_is_pinned_anew(world: World) -> None:
    async with world.pool(affinity="strict") as pool:
        before = await pool.worker()
        token = await pool.run("pid", session="s")
        await pool.call("recycle", before.worker_id)
        await pool.events.wait("worker.ended", worker_id=before.worker_id)
        assert await pool.run("pid", session="s") != token


async def test_sessions_are_bounded(world: World) -> None:
    async with world.pool(max_sessions=2) as pool:
        for name in "abcd":
            await pool.run(session=name)
        assert (await pool.stats()).sessions == 2


async def test_a_session_is_forgotten_after_its_time(world: World) -> None:
    async with world.pool(session_ttl_s=0.05) as pool:
        await pool.run(session="s")
        assert (await pool.stats()).sessions == 1
        await pool.until(lambda stats: stats.sessions == 0)
