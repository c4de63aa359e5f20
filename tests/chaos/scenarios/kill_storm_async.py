"""The kill storm over AsyncPool, on asyncio and on trio: 16 tasks call, workers and templates are killed.

What counts as lost is said in `kill_storm`. The killer is a thread, which asks the loop for the pool's workers.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

import dspool
from tests.chaos.finding import Finding, Plan
from tests.chaos.premises import Premises
from tests.chaos.storm.ledger import perform
from tests.chaos.storm.result import add_storm
from tests.chaos.storm.storm import CALLERS, OPTIONS, PATIENCE_S, TIMEOUT_S, Force, Storm
from tests.chaos.tally import Tally
from tests.chaos.watch import Watch


def kill_storm_async(plan: Plan) -> Finding:
    """See the module's docstring."""
    force = Force(
        kills=plan.pick(short=20, chaos=60, soak=500),
        calls=plan.pick(short=200, chaos=600, soak=5_000),
    )
    tally = Tally()
    with Premises() as premises:
        for backend in ("asyncio", "trio"):
            anyio.run(partial(_storm, backend, plan, force, premises, tally), backend=backend)
        left = premises.left()
    return tally.finding("kill_storm_async", plan, left)


async def _storm(name: str, plan: Plan, force: Force, premises: Premises, tally: Tally) -> None:
    """One storm, over a pool of its own."""
    watch = Watch()
    async with dspool.AsyncPool(name=name, on_event=watch, quarantine_after=None, **OPTIONS) as pool:
        storm = Storm(plan, force, premises, lambda: anyio.from_thread.run(pool.workers), watch)
        callers = _Callers(pool, storm)
        with anyio.move_on_after(math.inf) as patience:
            async with anyio.create_task_group() as tasks:
                for number in range(CALLERS):
                    tasks.start_soon(callers.work, number)
                try:
                    await anyio.to_thread.run_sync(storm.rage, abandon_on_cancel=True)
                finally:
                    storm.over.set()
                patience.deadline = anyio.current_time() + PATIENCE_S
        add_storm(tally, name, storm, stuck=callers.working, stats=await pool.stats(), health=await pool.health())


class _Callers:
    """Tasks that call until the storm is over."""

    def __init__(self, pool: dspool.AsyncPool, storm: Storm) -> None:
        self.working = 0
        self._pool, self._storm = pool, storm

    async def work(self, number: int) -> None:
        """One of them."""
        storm, gate = self._storm, self._storm.gate(number)
        self.working += 1
        while not storm.over.is_set():
            if gate.is_set():
                await self._call()
            else:
                await anyio.to_thread.run_sync(gate.wait, PATIENCE_S)
        self.working -= 1

    async def _call(self) -> None:
        books = self._storm.books
        call = books.next_call()
        try:
            answer: Any = await self._pool.run(perform, call.inputs, idempotent=call.idempotent, timeout_s=TIMEOUT_S)
        except Exception as error:
            books.raised(call, error)
        else:
            books.answered(call, answer)
