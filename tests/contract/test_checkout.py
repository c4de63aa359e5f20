"""The check hook, labels, and leases that are kept for several runs."""

from __future__ import annotations

import gc
import threading
import warnings
from typing import Any

import pytest

import dspool
from dspool import KEEP, CheckoutRequest, Remove, Skip, Verdict, WorkerGroup, WorkerInfo
from dspool.testing.scripted import behave
from tests.contract.backends import DEADLINE_S, SHORT_S
from tests.contract.subject import World, beside, gather

pytestmark = pytest.mark.narrow


# --- the check hook ---------------------------------------------------------------------------------------------------


async def test_the_hook_is_told_of_worker_and_call(world: World) -> None:
    seen: list[tuple[WorkerInfo, CheckoutRequest]] = []

    def check(worker: WorkerInfo, request: CheckoutRequest) -> Verdict:
        seen.append((worker, request))
        return KEEP

    groups = [WorkerGroup(name="big", workers=1, labels=frozenset({"gpu"}))]
    async with world.pool(workers=groups, check=check) as pool:
        assert await pool.run(value=1, session="s", priority=3, require="gpu") == 1
        ((worker, request),) = seen
        assert (worker.group, worker.state, worker.labels) == ("big", "busy", frozenset({"gpu"}))
        assert (request.pool, request.session, request.priority) == (pool.pool.name, "s", 3)
        assert (request.require, request.removals) == (frozenset({"gpu"}), 0)
        assert request.program is not None


async def test_a_worker_that_the_hook_removes_is_replaced_and_the_same_call_is_served(world: World) -> None:
    bad: list[int] = []

    def check(worker: WorkerInfo, request: CheckoutRequest) -> Verdict:
        bad.append(worker.worker_id)
        return Remove("not this one") if len(bad) == 1 else KEEP

    async with world.pool(check=check) as pool:
        assert await pool.run(value=1) == 1
        assert bad == [1, 2]
        fields = await pool.events.wait("worker.ended", worker_id=1)
        assert (fields["report"].reason, fields["report"].detail) == ("removed", "not this one")
        stats = await pool.stats()
        assert (stats.removals, stats.calls_ok, stats.checkouts) == (1, 1, 1)


async def test_a_hook_that_always_removes_gives_up_after_three_workers(world: World) -> None:
    async with world.pool(check=lambda worker, request: Remove("no")) as pool:
        with pytest.raises(dspool.CheckoutSkipped, match="removed 3 workers for this one call") as caught:
            await pool.run()
        assert caught.value.reasons == {1: "no", 2: "no", 3: "no"}
        assert (await pool.stats()).removals == 3


async def test_a_hook_that_skips_sends_the_call_to_another_worker(world: World) -> None:
    def check(worker: WorkerInfo, request: CheckoutRequest) -> Verdict:
        return Skip("odd") if worker.worker_id % 2 else KEEP

    async with world.pool(workers=2, check=check) as pool:
        tokens = {await pool.run("pid") for _ in range(3)}
        even = [worker for worker in await pool.workers() if worker.worker_id == 2]
        assert tokens == {world.backend.token_of(even[0])}
        stats = await pool.stats()
        assert stats.exits == {}
        assert (stats.calls_ok, stats.removals) == (3, 0)


async def test_a_call_that_every_worker_is_skipped_for_fails_and_nobody_is_restarted(world: World) -> None:
    async with world.pool(workers=2, check=lambda worker, request: Skip(f"no {worker.worker_id}")) as pool:
        with pytest.raises(dspool.CheckoutSkipped, match="2 were asked") as caught:
            await pool.run()
        assert caught.value.reasons == {1: "no 1", 2: "no 2"}
        stats = await pool.stats()
        assert (stats.skips, stats.exits, stats.started) == (2, {}, 2)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (ZeroDivisionError("oops"), "the check hook raised ZeroDivisionError: oops"),
        (None, "the check hook returned None instead of KEEP, Remove(...) or Skip(...)"),
        (True, "the check hook returned True instead of KEEP, Remove(...) or Skip(...)"),
    ],
)
async def test_a_hook_that_fails_removes_the_worker(world: World, answer: Any, detail: str) -> None:
    asked: list[int] = []

    def check(worker: WorkerInfo, request: CheckoutRequest) -> Any:
        asked.append(worker.worker_id)
        if len(asked) > 1:
            return KEEP
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with world.pool(check=check) as pool:
        assert await pool.run(value=1) == 1
        fields = await pool.events.wait("worker.ended", worker_id=1)
        assert (fields["report"].reason, fields["report"].detail) == ("removed", detail)
        if isinstance(answer, Exception):
            assert "ZeroDivisionError" in (await pool.events.wait("hook.failed"))["traceback"]


async def test_a_hook_that_blocks_delays_its_own_call_only_and_counts_towards_its_deadline(world: World) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    def check(worker: WorkerInfo, request: CheckoutRequest) -> Verdict:
        if request.session == "slow":
            blocked.set()
            go_on.wait(DEADLINE_S)
        return KEEP

    async with world.pool(workers=2, check=check) as pool, beside() as calls:
        slow = calls.start(pool.run, session="slow", timeout_s=0.05)
        await pool.until(lambda stats: blocked.is_set())
        assert await pool.run(value=1) == 1
        await pool.run("echo", value=1, timeout_s=10)
        threading.Timer(0.06, go_on.set).start()
        with pytest.raises(dspool.QueueTimeout):
            await slow.get()
        stats = await pool.stats()
        assert (stats.exits, stats.leased, stats.queue_timeouts + stats.calls_timeout) == ({}, 0, 1)


async def test_a_hook_that_blocks_does_not_hold_close_up(world: World) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    def check(worker: WorkerInfo, request: CheckoutRequest) -> Verdict:
        blocked.set()
        go_on.wait(DEADLINE_S)
        return KEEP

    async with world.pool(check=check) as pool, beside() as calls:
        call = calls.start(pool.run)
        await pool.until(lambda stats: blocked.is_set())
        await pool.call("close", 0.0)
        go_on.set()
        with pytest.raises(dspool.PoolClosed):
            await call.get()


# --- labels -----------------------------------------------------------------------------------------------------------


async def test_require_picks_the_group_and_an_unknown_label_fails_at_once(world: World) -> None:
    groups = [
        WorkerGroup(name="small", workers=1, env={"SIZE": "small"}),
        WorkerGroup(name="big", workers=1, labels=frozenset({"gpu", "big"}), env={"SIZE": "big"}),
    ]
    async with world.pool(workers=groups) as pool:
        assert [await pool.run("environment", name="SIZE", require="gpu") for _ in range(2)] == ["big", "big"]
        assert await pool.run("environment", name="SIZE", require=["gpu", "big"]) == "big"
        with pytest.raises(dspool.CheckoutSkipped, match="no worker group with the labels"):
            await pool.run(require="tpu")
        with pytest.raises(dspool.OptionsError, match="needs group="):
            await pool.call("resize", 2)


async def test_a_call_that_waits_for_its_label_holds_nobody_up(world: World) -> None:
    gate = world.gate()
    groups = [WorkerGroup(name="a", workers=1, labels=frozenset({"a"})), WorkerGroup(name="b", workers=1)]
    async with world.pool(workers=groups) as pool, beside() as calls:
        held = calls.start(pool.meet, gate, require="a")
        holder = await gate.arrival()
        waits = calls.start(pool.run, require="a", value="waited")
        await pool.until(lambda stats: stats.waiting == 1)
        assert await pool.run(value="free") == "free"
        holder.let_go()
        assert await gather(held, waits) == [None, "waited"]


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_a_lease_runs_several_calls_in_one_worker(world: World) -> None:
    async with world.pool(workers=2) as pool:
        async with await pool.checkout() as lease:
            worker = lease.lease.worker
            assert worker is not None
            assert worker.state == "busy"
            assert [await lease.run("pid") for _ in range(3)] == [world.backend.token_of(worker)] * 3
            assert (await pool.stats()).leased == 1
        stats = await pool.stats()
        assert (stats.leased, stats.checkouts, stats.calls_ok) == (0, 1, 3)


async def test_a_lease_survives_a_program_that_raises_and_ends_with_its_worker(world: World) -> None:
    async with world.pool() as pool:
        lease = await pool.checkout()
        with pytest.raises(dspool.ProgramError):
            await lease.run("fail")
        assert await lease.run(value=1) == 1
        with pytest.raises(dspool.WorkerLost):
            await lease.run("crash")
        with pytest.raises(dspool.PoolError, match="is over"):
            await lease.run()
        await lease.close()
        assert await pool.run(value=2) == 2
        assert (await pool.stats()).calls_lost == 1


async def test_removing_a_leases_worker_replaces_it_when_the_lease_ends(world: World) -> None:
    async with world.pool() as pool:
        async with await pool.checkout() as lease:
            token = await lease.run("pid")
            lease.lease.remove("it smells")
            assert await lease.run("pid") == token
        assert (await pool.events.wait("worker.ended"))["report"].detail == "it smells"
        assert await pool.run("pid") != token


@pytest.mark.slow
async def test_a_lease_past_hold_s_is_taken_back_and_its_worker_replaced(world: World) -> None:
    async with world.pool() as pool:
        await pool.run()  # the program is loaded: its time is not the lease's
        lease = await pool.checkout(hold_s=SHORT_S)
        token = await lease.run("pid")
        await pool.events.wait("lease.expired")
        assert await pool.run("pid") != token
        with pytest.raises(dspool.PoolError, match="past hold_s"):
            await lease.run()
        await lease.close()
        assert (await pool.stats()).exits == {"timeout": 1}


@pytest.mark.narrow
async def test_a_run_in_a_lease_whose_time_is_over_before_it_is_sent_leaves_both_alone(world: World) -> None:
    async with world.pool() as pool:
        async with await pool.checkout() as lease:
            token = await lease.run("pid")
            with pytest.raises(dspool.QueueTimeout, match=r"was not sent.* lease \d+ goes on"):
                await lease.run("pid", timeout_s=0)
            assert await lease.run("pid") == token
        stats = await pool.stats()
        assert (stats.exits, stats.calls_ok, stats.calls_timeout) == ({}, 2, 0)


@pytest.mark.narrow
async def test_a_checkout_that_does_not_wait_goes_on_to_the_next_idle_worker(world: World) -> None:
    async with world.pool(workers=2) as pool:
        dead = await pool.run("pid")
        world.backend.end(dead)  # the pool may have heard of it by now, or not
        async with await pool.checkout(timeout_s=0) as lease:
            assert await lease.run("pid") != dead


@pytest.mark.slow
async def test_a_run_in_a_lease_past_its_timeout_ends_the_lease(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        await pool.run()  # the program is loaded: its time is not the call's
        async with await pool.checkout() as lease:
            run = calls.start(lease.run, "meet", path=gate.path, timeout_s=SHORT_S)
            await gate.arrival()
            with pytest.raises(dspool.CallTimeout):
                await run.get()
            with pytest.raises(dspool.PoolError, match="is over"):
                await lease.run()
        assert await pool.run(value=1) == 1


async def test_a_lease_that_is_dropped_warns_and_its_worker_is_replaced(world: World) -> None:
    async with world.pool() as pool:
        lease = await pool.checkout()
        token = await lease.run("pid")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            del lease
            gc.collect()
            await pool.events.wait("worker.ended")
        assert [each.category for each in seen] == [ResourceWarning]
        assert "was dropped without being closed" in str(seen[0].message)
        assert await pool.run("pid") != token
        assert (await pool.stats()).exits == {"removed": 1}


async def test_a_lease_is_over_when_it_is_closed(world: World) -> None:
    async with world.pool() as pool:
        lease = await pool.checkout()
        await lease.close()
        await lease.close()
        with pytest.raises(dspool.PoolError, match="is over"):
            await lease.run()
        assert (await pool.stats()).exits == {}


async def test_a_lease_runs_one_call_at_a_time(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls, await pool.checkout() as lease:
        run = calls.start(lease.run, "meet", path=gate.path, value=1)
        visitor = await gate.arrival()
        with pytest.raises(dspool.PoolError, match="runs a call already"):
            await lease.run()
        visitor.let_go()
        assert await run.get() == 1
        assert await lease.run(value=2) == 2


async def test_a_lease_of_a_pool_that_closes_is_over(world: World) -> None:
    async with world.pool() as pool:
        lease = await pool.checkout()
        await pool.call("close", 0.0)
        with pytest.raises(dspool.PoolClosed):
            await lease.run()
        await lease.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [("hold_s", 0), ("timeout_s", -1), ("affinity", "often"), ("session", 1), ("require", [1])],
)
async def test_an_argument_out_of_range_touches_no_worker(world: World, option: str, value: Any) -> None:
    async with world.pool() as pool:
        with pytest.raises(dspool.OptionsError, match=option):
            await pool.checkout(**{option: value})
        assert (await pool.stats()).checkouts == 0


@pytest.mark.narrow
async def test_a_misspelt_argument_of_a_run_in_a_lease_is_told_too(world: World) -> None:
    async with world.pool() as pool, await pool.checkout() as lease:
        said = r"lease\.run\(\) has no argument 'timeout'; did you mean 'timeout_s'\? It takes timeout_s, lm"
        run: Any = lease.lease.run
        with pytest.raises(dspool.OptionsError, match=said):
            await run(behave, {}, timeout=1)
        assert await lease.run(value=1) == 1


@pytest.mark.parametrize(
    ("method", "wrong", "meant"),
    [("run", "timeout", "timeout_s"), ("checkout", "hold", "hold_s"), ("map", "concurency", "concurrency")],
)
async def test_a_misspelt_argument_is_told_with_what_was_meant(
    world: World, method: str, wrong: str, meant: str
) -> None:
    async with world.pool() as pool:
        positional: dict[str, tuple[Any, ...]] = {"run": (behave, {}), "checkout": (), "map": (behave, [])}
        with pytest.raises(
            dspool.OptionsError, match=rf"{method}\(\) has no argument '{wrong}'; did you mean '{meant}'\?"
        ):
            await pool.call(method, *positional[method], **{wrong: 1})
        with pytest.raises(
            dspool.OptionsError, match=rf"{method}\(\) .* 'max_retries': max_retries is an option of the pool"
        ):
            await pool.call(method, *positional[method], max_retries=1)
        assert (await pool.stats()).checkouts == 0
