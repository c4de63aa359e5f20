"""A call: its value, its errors, its deadline, and what becomes of it when its worker dies."""

from __future__ import annotations

import datetime as dt
import decimal
import functools
import time
from typing import Any

import anyio
import pytest

import dspool
from dspool import KEEP, CheckoutRequest, Remove, Skip, Verdict, WorkerInfo
from dspool.testing.scripted import behave
from tests.contract.backends import SHORT_S
from tests.contract.subject import World, beside, gather

GARBAGE = {
    "garbage": {},
    "foreign_id": {},
    "garbage with a header of text": {"data": b"HTTP/1.1 200 OK\r\n"},
}


async def test_a_call_gives_the_programs_value(world: World) -> None:
    async with world.pool() as pool:
        assert await pool.run(value="hello") == "hello"
        assert (await pool.stats()).calls_ok == 1


@pytest.mark.narrow
async def test_plain_values_make_the_round_trip(world: World) -> None:
    values: list[Any] = [
        None,
        True,
        -(2**70),
        1.5,
        "ü\0",
        b"\x00\xff",
        [1, [2]],
        {"a": {"b": None}},
        (1, "two"),
        {1, 2},
        dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
        decimal.Decimal("1.10"),
    ]
    async with world.pool() as pool:
        assert await pool.run(value=values) == values


async def test_as_many_calls_run_at_once_as_there_are_workers(world: World) -> None:
    gate = world.gate()
    async with world.pool(workers=2) as pool, beside() as calls:
        first = [calls.start(pool.meet, gate, number) for number in range(3)]
        visitors = await gate.arrivals(2)
        stats = await pool.until(lambda stats: stats.waiting == 1)
        assert (stats.leased, stats.busy) == (2, 2)
        assert gate.nobody()
        assert visitors[0].token != visitors[1].token
        visitors[0].let_go()
        visitors.append(await gate.arrival())
        assert visitors[2].token == visitors[0].token
        for visitor in visitors[1:]:
            visitor.let_go()
        assert await gather(*first) == [0, 1, 2]


@pytest.mark.narrow
async def test_calls_are_served_in_the_order_of_their_arrival_and_priority_goes_first(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        held = calls.start(pool.meet, gate)
        holder = await gate.arrival()
        order: list[str] = []

        async def call(name: str, priority: int) -> None:
            order.append(await pool.run(value=name, priority=priority))

        queued = []
        for number, (name, priority) in enumerate([("a", 0), ("b", 0), ("urgent", -1), ("c", 0)]):
            queued.append(calls.start(call, name, priority))
            await pool.until(lambda stats, waiting=number + 1: stats.waiting == waiting)  # type: ignore[misc]
        holder.let_go()
        await gather(held, *queued)
        assert order == ["urgent", "a", "b", "c"]


@pytest.mark.narrow
async def test_a_timeout_in_the_queue_leaves_the_worker_alone(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        before = await pool.tokens()
        held = calls.start(pool.meet, gate, "held")
        holder = await gate.arrival()
        said = r"no worker free within \d\.\d+ s; calls that wait: 1; workers: 1 ready, 0 starting; "
        said += r"longest held: worker 1 for \d\.\d+ s, by \S*behave\S*; add workers"
        with pytest.raises(dspool.QueueTimeout, match=said) as caught:
            await pool.run(timeout_s=0.02)
        assert isinstance(caught.value, TimeoutError)
        holder.let_go()
        assert await held.get() == "held"
        stats = await pool.stats()
        assert (stats.queue_timeouts, stats.calls_timeout, stats.calls_cancelled) == (1, 0, 0)
        assert await pool.tokens() == before


@pytest.mark.narrow
async def test_a_timeout_in_the_queue_of_a_pool_without_workers_says_so(world: World) -> None:
    async with world.pool(max_waiting=1) as pool:
        await pool.call("resize", 0)
        with pytest.raises(dspool.QueueTimeout, match=r"the size of group default is 0: call resize\(\)"):
            await pool.run(timeout_s=0.02)
        async with beside() as calls:
            waits = calls.start(pool.run, value=1)
            await pool.until(lambda stats: stats.waiting == 1)
            with pytest.raises(dspool.PoolSaturated, match=r"the size of group default is 0: call resize\(\)"):
                await pool.run()
            await pool.call("resize", 1)
            assert await waits.get() == 1


@pytest.mark.narrow
async def test_a_timeout_in_the_queue_of_a_paused_pool_says_so(world: World) -> None:
    async with world.pool() as pool:
        await pool.call("pause")
        with pytest.raises(dspool.QueueTimeout, match=r"1 ready, 0 starting; the pool is paused: call resume\(\)"):
            await pool.run(timeout_s=0.02)
        await pool.call("resume")
        assert await pool.run(value=1) == 1


@pytest.mark.narrow
async def test_a_call_whose_deadline_is_over_before_it_is_sent_costs_no_worker(world: World) -> None:
    async with world.pool() as pool:
        before = await pool.tokens()
        said = r"had a worker for this call only when its deadline was over, 0\.\d+ s after the call; it was not sent"
        with pytest.raises(dspool.QueueTimeout, match=said):
            await pool.run(timeout_s=0)
        stats = await pool.stats()
        assert (stats.queue_timeouts, stats.calls_timeout, stats.leased) == (1, 0, 0)
        assert await pool.tokens() == before


@pytest.mark.narrow
async def test_timeout_0_means_now_or_never(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        async with await pool.checkout(timeout_s=0):
            pass
        held = calls.start(pool.meet, gate)
        holder = await gate.arrival()
        with pytest.raises(dspool.QueueTimeout):
            await pool.checkout(timeout_s=0)
        holder.let_go()
        await held.get()


@pytest.mark.narrow
async def test_now_or_never_leaves_a_hook_its_time(world: World) -> None:
    async with world.pool(check=lambda worker, request: dspool.KEEP) as pool, await pool.checkout(timeout_s=0) as lease:
        assert await lease.run(value=1) == 1
    async with world.pool(check=lambda worker, request: dspool.Skip("no")) as pool:
        with pytest.raises((dspool.CheckoutSkipped, dspool.QueueTimeout)):
            await pool.checkout(timeout_s=0)


@pytest.mark.narrow
async def test_queue_timeout_s_bounds_the_queue_alone(world: World) -> None:
    gate = world.gate()
    async with world.pool(queue_timeout_s=0.02) as pool, beside() as calls:
        held = calls.start(pool.meet, gate, "held")
        holder = await gate.arrival()
        with pytest.raises(dspool.QueueTimeout):
            await pool.run()
        holder.let_go()
        assert await held.get() == "held"


@pytest.mark.slow
async def test_a_call_past_its_deadline_costs_its_worker_which_is_replaced(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        await pool.run()  # the program is loaded: its time is not the call's
        late = calls.start(pool.meet, gate, timeout_s=SHORT_S)
        visitor = await gate.arrival()
        with pytest.raises(dspool.CallTimeout, match="did not end by its deadline") as caught:
            await late.get()
        assert isinstance(caught.value, TimeoutError)
        report = caught.value.report
        assert report is not None
        assert (report.reason, report.signal) == ("timeout", "SIGKILL")
        await visitor.gone()
        assert await pool.run("pid") != visitor.token
        stats = await pool.stats()
        assert (stats.calls_timeout, stats.replaced, stats.exits["timeout"]) == (1, 1, 1)


@pytest.mark.usefixtures("patient_dump")
@pytest.mark.only("scripted", "real")
async def test_a_timeouts_report_has_the_workers_stacks(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        await pool.run()  # the program is loaded: its time is not the call's
        late = calls.start(pool.run, "hang_gil", path=gate.path, timeout_s=SHORT_S)
        await gate.arrival()
        with pytest.raises(dspool.CallTimeout, match="in hang_gil") as caught:
            await late.get()
        assert caught.value.report is not None
        first, *others = caught.value.report.stack_dump.split("\n\n")
        assert "in hang_gil" in first
        assert others


@pytest.mark.slow
async def test_a_late_answer_reaches_nobody(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool, beside() as calls:
        await pool.run()  # the program is loaded: its time is not the call's
        late = calls.start(pool.meet, gate, "late", timeout_s=SHORT_S)
        visitor = await gate.arrival()
        with pytest.raises(dspool.CallTimeout):
            await late.get()
        visitor.close()
        assert [await pool.run(value=number) for number in range(5)] == list(range(5))


@pytest.mark.parametrize(
    ("do", "inputs", "how"), [("crash", {}, {"signal": "SIGSEGV"}), ("leave", {"code": 3}, {"exit_code": 3})]
)
async def test_a_worker_that_dies_in_a_call_is_reported_and_replaced(
    world: World, do: str, inputs: dict[str, Any], how: dict[str, Any]
) -> None:
    async with world.pool() as pool:
        before = await pool.worker()
        assert await pool.run() is None
        said = rf"lost worker {before.worker_id} while it ran .* was not sent again; pass idempotent=True"
        with pytest.raises(dspool.WorkerLost, match=said) as caught:
            await pool.run(do, **inputs)
        assert caught.value.retryable
        report = caught.value.report
        assert report is not None
        assert str(caught.value).endswith(report.stack_dump)
        assert (report.worker_id, report.pid, report.calls) == (before.worker_id, before.pid, 2)
        assert report.reason == ("crash" if do == "crash" else "exited")
        assert {name: getattr(report, name) for name in how} == how
        assert await pool.run(value=1) == 1
        stats = await pool.stats()
        assert (stats.calls_lost, stats.calls_ok, stats.replaced) == (1, 2, 1)
        assert stats.last_exit == report


async def test_an_idempotent_call_is_sent_again(world: World) -> None:
    gate = world.gate()
    async with world.pool(workers=2) as pool, beside() as calls:
        call = calls.start(pool.meet, gate, "done", idempotent=True)
        first = await gate.arrival()
        world.backend.kill(first.token)
        second = await gate.arrival()
        assert second.token != first.token
        second.let_go()
        assert await call.get() == "done"
        stats = await pool.stats()
        assert (stats.retries, stats.calls_lost, stats.calls_ok) == (1, 1, 1)


@pytest.mark.narrow
async def test_the_time_that_a_call_ran_is_no_wait_when_it_is_sent_again(world: World) -> None:
    gate = world.gate()
    async with world.pool(workers=2, queue_timeout_s=0.1) as pool, beside() as calls:
        call = calls.start(pool.meet, gate, "done", idempotent=True)
        first = await gate.arrival()
        await anyio.sleep(0.15)  # longer than it may wait for a worker
        world.backend.kill(first.token)
        second = await gate.arrival()
        second.let_go()
        assert await call.get() == "done"


@pytest.mark.only("fake", "scripted")
@pytest.mark.narrow
async def test_a_call_that_is_refused_when_it_is_to_be_sent_again_says_how_it_was_lost(world: World) -> None:
    gate = world.gate()
    async with world.pool(faults=(None, "boot_error"), max_restarts=0) as pool, beside() as calls:
        call = calls.start(pool.meet, gate, idempotent=True)
        visitor = await gate.arrival()
        world.backend.kill(visitor.token)
        with pytest.raises(dspool.PoolBroken) as caught:
            await call.get()
        assert isinstance(caught.value.__cause__, dspool.WorkerLost)
        assert caught.value.__cause__.report is not None


@pytest.mark.narrow
async def test_an_idempotent_call_is_not_sent_for_ever(world: World) -> None:
    async with world.pool(workers=2, max_retries=1, quarantine_after=None) as pool:
        said = "tried 2 times and may have run each time; max_retries=1 and its deadline allow no more"
        with pytest.raises(dspool.WorkerLost, match=said):
            await pool.run("leave", idempotent=True)
        assert (await pool.stats()).retries == 1


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.narrow
async def test_three_workers_found_dead_end_a_call_unless_it_may_be_sent_again(world: World, idempotent: bool) -> None:
    dead: list[int] = []

    def check(worker: WorkerInfo, request: CheckoutRequest) -> Verdict:
        if len(dead) < 4:
            dead.append(worker.worker_id)
            world.backend.end(world.backend.token_of(worker))
        return KEEP

    async with world.pool(workers=2, check=check, max_restarts=100) as pool:
        if idempotent:
            assert await pool.run(value=1, idempotent=True) == 1
            assert (await pool.stats()).retries == 1
        else:
            with pytest.raises(dspool.CheckoutSkipped, match="removed 3 workers for this one call") as caught:
                await pool.run(value=1)
            assert len(dead) == 3
            assert caught.value.retryable


@pytest.mark.narrow
async def test_a_call_that_a_living_worker_is_not_for_is_not_sent_again_for_a_dead_one(world: World) -> None:
    asked: list[int] = []

    def check(worker: WorkerInfo, request: CheckoutRequest) -> Verdict:
        asked.append(worker.worker_id)
        if len(asked) > 1:
            return Skip("not for this call")
        world.backend.end(world.backend.token_of(worker))
        return KEEP

    async with world.pool(workers=1, check=check, max_restarts=100) as pool:
        with pytest.raises(dspool.CheckoutSkipped, match="not for this call"):
            await pool.run(value=1, idempotent=True)
        assert len(asked) == len(set(asked)) == 2
        assert (await pool.stats()).retries == 0


@pytest.mark.narrow
async def test_a_hook_that_removes_three_workers_ends_an_idempotent_call_too(world: World) -> None:
    async with world.pool(workers=2, check=lambda worker, request: Remove("no")) as pool:
        with pytest.raises(dspool.CheckoutSkipped, match="removed 3 workers for this one call") as caught:
            await pool.run(value=1, idempotent=True)
        assert not caught.value.retryable
        stats = await pool.stats()
        assert (stats.removals, stats.retries) == (3, 0)


async def test_a_request_that_was_never_read_moves_on_silently(world: World) -> None:
    async with world.pool(workers=2) as pool, beside() as calls:
        lease = await pool.checkout()
        assert lease.lease.worker is not None
        token = world.backend.token_of(lease.lease.worker)
        await lease.close()
        world.backend.freeze(token)  # the last one used is the next one taken
        call = calls.start(pool.run, "pid")
        await pool.until(lambda stats: stats.leased == 1)
        world.backend.kill(token)
        assert await call.get() != token
        stats = await pool.stats()
        assert (stats.calls_lost, stats.calls_ok, stats.retries) == (0, 1, 0)


@pytest.mark.narrow
async def test_the_time_that_a_request_lay_unread_is_no_wait_as_it_moves_on(world: World) -> None:
    async with world.pool(workers=2, queue_timeout_s=0.1) as pool, beside() as calls:
        lease = await pool.checkout()
        assert lease.lease.worker is not None
        token = world.backend.token_of(lease.lease.worker)
        await lease.close()
        world.backend.freeze(token)
        call = calls.start(pool.run, "pid")
        await pool.until(lambda stats: stats.leased == 1)
        await anyio.sleep(0.15)  # longer than it may wait for a worker
        world.backend.kill(token)
        assert await call.get() != token


async def test_a_request_that_was_half_read_moves_on_silently(world: World) -> None:
    async with world.pool(workers=2) as pool, beside() as calls:
        lease = await pool.checkout()
        assert lease.lease.worker is not None
        token = world.backend.token_of(lease.lease.worker)
        await lease.close()
        world.backend.freeze(token)
        call = calls.start(pool.run, "length", data=b"x" * 5_000_000)
        await pool.until(lambda stats: stats.leased == 1)
        world.backend.kill(token)
        assert await call.get() == 5_000_000
        assert (await pool.stats()).calls_lost == 0


async def test_a_program_that_raises_leaves_the_worker_healthy(world: World) -> None:
    async with world.pool() as pool:
        before = await pool.tokens()
        with pytest.raises(dspool.ProgramError, match="no luck today") as caught:
            await pool.run("fail", message="no luck today")
        assert (caught.value.code, caught.value.type) == ("program_error", "builtins.ValueError")
        assert "ValueError: no luck today" in caught.value.remote_traceback or world.backend.name == "scripted"
        assert await pool.tokens() == before
        stats = await pool.stats()
        assert (stats.calls_failed, stats.exits) == (1, {})
        assert stats.consecutive_failures == 1
        assert "ValueError: no luck today" in stats.last_error


async def test_a_result_that_cannot_be_sent_is_a_program_error(world: World) -> None:
    async with world.pool() as pool:
        with pytest.raises(dspool.ProgramError, match="object") as caught:
            await pool.run("unencodable")
        assert caught.value.code == "encode_error"
        assert await pool.run(value=1) == 1


@pytest.mark.narrow
async def test_inputs_that_cannot_be_sent_touch_no_worker(world: World) -> None:
    async with world.pool() as pool:
        with pytest.raises(dspool.EncodeError, match=r"^pool '.*': .* was not sent: inputs\['value'\] is a"):
            await pool.run(value=object())
        assert (await pool.stats()).checkouts == 0


@pytest.mark.narrow
async def test_a_request_over_the_frames_cap_touches_no_worker(world: World) -> None:
    async with world.pool(max_frame_bytes=10_000) as pool:
        with pytest.raises(dspool.EncodeError, match="max_frame_bytes"):
            await pool.run(value=b"x" * 20_000)
        assert (await pool.stats()).checkouts == 0


async def test_a_program_over_the_frames_cap_touches_no_worker(world: World) -> None:
    async with world.pool(max_frame_bytes=10_000) as pool:
        worker = await pool.worker()
        for program in (f"question -> {'answer' * 2000}", functools.partial(behave, padding="x" * 10_000)):
            with pytest.raises(dspool.EncodeError, match="more than max_frame_bytes=10,000"):
                await pool.call("run", program, {"question": "?"})
        assert (await pool.stats()).checkouts == 0
        assert (await pool.worker()).worker_id == worker.worker_id


@pytest.mark.only("scripted", "real")
async def test_a_result_over_the_frames_cap_is_a_program_error(world: World) -> None:
    async with world.pool(max_frame_bytes=10_000) as pool:
        with pytest.raises(dspool.ProgramError, match="max_frame_bytes") as caught:
            await pool.run("big", size=20_000)
        assert caught.value.code == "result_too_large"
        assert await pool.run(value=1) == 1


async def test_a_large_request_and_a_large_answer_pass(world: World) -> None:
    async with world.pool() as pool:
        assert await pool.run(value=b"x" * 3_000_000) == b"x" * 3_000_000


@pytest.mark.parametrize("kind", GARBAGE)
async def test_a_worker_that_writes_garbage_is_removed(world: World, kind: str) -> None:
    async with world.pool() as pool:
        token = (await pool.tokens())[0]
        with pytest.raises(dspool.WorkerLost) as caught:
            await pool.run(kind.split()[0], **GARBAGE[kind])
        assert caught.value.report is not None
        assert caught.value.report.reason == "protocol_error"
        if "text" in kind:
            assert "the length header seems to be missing" in str(caught.value)
        assert await pool.run("pid") != token
        assert (await pool.stats()).exits == {"protocol_error": 1}


async def test_an_answer_that_nobody_asked_for_costs_the_worker_and_nothing_else(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool:
        assert await pool.run("babble", path=gate.path) is None
        visitor = await gate.arrival()
        visitor.let_go()
        await visitor.gone()
        assert await pool.run("pid") != visitor.token
        stats = await pool.stats()
        assert (stats.calls_lost, stats.removals) == (0, 1)


async def test_a_worker_that_ends_its_slots_pipe_is_replaced(world: World) -> None:
    async with world.pool() as pool:
        token = (await pool.tokens())[0]
        with pytest.raises(dspool.WorkerLost):
            await pool.run("end_slot")
        assert await pool.run("pid") != token


@pytest.mark.narrow
async def test_the_queue_is_bounded(world: World) -> None:
    gate = world.gate()
    async with world.pool(max_waiting=1) as pool, beside() as calls:
        held = calls.start(pool.meet, gate)
        holder = await gate.arrival()
        waits = calls.start(pool.run)
        await pool.until(lambda stats: stats.waiting == 1)
        with pytest.raises(dspool.PoolSaturated, match="max_waiting=1") as caught:
            await pool.run()
        assert caught.value.retryable
        holder.let_go()
        await gather(held, waits)
        assert (await pool.stats()).rejected == {"PoolSaturated": 1}


@pytest.mark.narrow
async def test_an_overloaded_pool_refuses_those_who_have_waited_too_long_though_no_worker_comes_free(
    world: World,
) -> None:
    gate = world.gate()
    async with world.pool(shed_target_s=0.01, shed_interval_s=0.02) as pool, beside() as calls:
        held = calls.start(pool.meet, gate)
        holder = await gate.arrival()
        with pytest.raises(dspool.PoolSaturated, match="is overloaded") as caught:
            await pool.run()
        assert caught.value.retryable
        await pool.events.wait("pool.shedding_began")
        assert (await pool.events.wait("pool.shedding_ended"))["shed"] == 1
        holder.let_go()
        await gather(held)
        assert await pool.run(value=1) == 1
        stats = await pool.stats()
        assert (stats.shed, stats.shedding, stats.rejected) == (1, False, {"PoolSaturated": 1})


@pytest.mark.only("asyncio", "trio")
async def test_a_cancelled_call_costs_its_worker_and_a_queued_one_costs_nothing(world: World) -> None:
    gate = world.gate()
    async with world.pool() as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.meet, gate)
            visitor = await gate.arrival()
            tasks.start_soon(pool.meet, gate)
            await pool.until(lambda stats: stats.waiting == 1)
            tasks.cancel_scope.cancel()
        await visitor.gone()
        assert gate.nobody()
        assert await pool.run("pid") != visitor.token
        stats = await pool.stats()
        assert (stats.calls_cancelled, stats.exits) == (2, {"cancelled": 1})


@pytest.mark.narrow
async def test_a_program_whose_calls_kill_workers_is_quarantined_until_it_is_released(world: World) -> None:
    async with world.pool(quarantine_after=2, quarantine_s=1000) as pool:
        for _ in range(2):
            with pytest.raises(dspool.WorkerLost):
                await pool.run("leave")
        begun = time.monotonic()
        with pytest.raises(dspool.ProgramQuarantined) as caught:
            await pool.run()
        assert time.monotonic() - begun < 1
        assert 990 < caught.value.retry_after_s <= 1000
        (program,) = (await pool.stats()).quarantined
        assert await pool.call("release", program) is True
        assert await pool.run(value=1) == 1
        assert (await pool.stats()).quarantined == ()
        assert await pool.call("release", program) is False, "its id is still known, and it runs"
        with pytest.raises(dspool.ProgramNotFound):
            await pool.call("release", "nobody")
