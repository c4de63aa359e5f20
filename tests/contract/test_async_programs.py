"""execution="async": many calls of async programs on one event loop of a worker, each of which can be cancelled."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from typing import Any

import anyio
import pytest

import dspool
from dspool.testing.scripted import behave
from dspool.testing.stub_lm import StubLM
from tests.contract.backends import DEADLINE_S, SHORT_S
from tests.contract.subject import World, beside, in_thread

pytestmark = [pytest.mark.only("real"), pytest.mark.every_front]

ASK = {"question": "why?"}
_arrived: list[asyncio.Event] = []


async def where() -> list[int]:
    return [os.getpid(), threading.get_ident(), id(asyncio.get_running_loop())]


def where_sync() -> list[int]:
    return [os.getpid(), threading.get_ident()]


async def meet(others: int) -> int:
    """Ends when so many calls of it are under way on this loop."""
    _arrived.append(asyncio.Event())
    if len(_arrived) == others:
        for event in _arrived:
            event.set()
    await _arrived[-1].wait()
    return os.getpid()


async def forever() -> None:
    await asyncio.Event().wait()


async def deaf() -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


async def test_calls_of_one_worker_run_on_one_loop(world: World) -> None:
    async with world.pool(slots=8, execution="async") as pool, beside() as calls:
        together = [calls.start(pool.call, "run", meet, {"others": 8}) for _ in range(8)]
        assert len({await call.get() for call in together}) == 1
        places = [tuple(await pool.call("run", where, {})) for _ in range(3)]
        assert len(set(places)) == 1
        assert (await pool.call("run", where_sync, {}))[1] != places[0][1]


async def test_a_deadline_ends_the_call_and_keeps_the_worker(world: World) -> None:
    async with world.pool(execution="async") as pool:
        (pid, *_) = await pool.call("run", where, {})
        with pytest.raises(dspool.CallTimeout, match="was told to cancel it"):
            await pool.call("run", forever, {}, timeout_s=SHORT_S)
        assert (await pool.call("run", where, {}))[0] == pid
        stats = await pool.stats()
        assert (stats.calls_timeout, stats.started, stats.exits) == (1, 1, {})


async def test_a_call_that_does_not_end_when_cancelled_costs_the_worker(world: World) -> None:
    async with world.pool(execution="async", cancel_grace_s=0.05) as pool:
        (pid, *_) = await pool.call("run", where, {})
        with pytest.raises(dspool.CallTimeout):
            await pool.call("run", deaf, {}, timeout_s=SHORT_S)
        assert (await pool.events.wait("worker.ended"))["report"].reason == "cancelled"
        assert (await pool.call("run", where, {}))[0] != pid


async def test_sync_programs_run_as_ever_and_cost_their_worker_when_cancelled(world: World) -> None:
    async with world.pool(execution="async", cancel_grace_s=0.05) as pool:
        assert await pool.run("echo", value=1) == 1
        with pytest.raises(dspool.CallTimeout):
            await pool.call("run", behave, {"do": "meet", "path": world.gate().path}, timeout_s=SHORT_S)
        assert (await pool.events.wait("worker.ended"))["report"].reason == "cancelled"
        assert await pool.run("echo", value=2) == 2


@pytest.mark.only("asyncio", "trio")
async def test_cancelling_a_task_closes_its_request_to_the_lm(world: World) -> None:
    import dspy

    with StubLM(faults=["ok", "hang"]) as stub:
        options: dict[str, Any] = {"lm": stub.settings(), "execution": "async", "cancel_grace_s": DEADLINE_S}
        async with world.pool(**options) as pool, anyio.create_task_group() as tasks:
            program = dspy.ChainOfThought("question -> answer")
            assert (await pool.call("run", program, ASK)).answer == "echo: why?"
            tasks.start_soon(pool.call, "run", program, ASK)
            await in_thread(functools.partial(stub.wait, lambda stats: stats.in_flight == 1, timeout_s=DEADLINE_S))
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                left = await in_thread(functools.partial(stub.wait_idle, timeout_s=DEADLINE_S))
                assert (left.aborted, left.answered) == (1, 1)
                stats = await pool.until(lambda stats: stats.idle == 1)
                assert (stats.calls_cancelled, stats.started, stats.exits) == (1, 1, {})


async def test_an_inherited_aforward_is_not_the_programs_own(world: World) -> None:
    import dspy

    class Own(dspy.ChainOfThought):
        def forward(self, **inputs: Any) -> Any:
            return dspy.Prediction(answer="its own forward")

    with StubLM() as stub:
        async with world.pool(lm=stub.settings(), execution="async") as pool:
            assert (await pool.call("run", Own("question -> answer"), ASK)).answer == "its own forward"
        assert stub.stats().requests == 0


async def test_an_unknown_execution_is_refused(world: World) -> None:
    with pytest.raises(dspool.OptionsError, match="execution must be one of threads, async; it is 'asynch'"):
        world.make(execution="asynch")
