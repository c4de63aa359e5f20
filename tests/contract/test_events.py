"""on_event: told of what happens, never in the way of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

import dspool
from tests.contract.subject import World

pytestmark = pytest.mark.narrow


async def test_a_pools_life_is_told_in_order(world: World) -> None:
    async with world.pool() as pool:
        await pool.run(value=1)
        world.backend.kill(await pool.run("pid"))
        lost = await pool.events.wait("worker.lost")
        await pool.events.wait("worker.ready", 2)
        assert isinstance(lost["report"], dspool.ExitReport)
    names = pool.events.names()
    assert names == [
        *("worker.ready", "pool.health", "worker.lost", "pool.health", "worker.ready", "pool.health"),
        *("pool.closing", "worker.draining", "worker.ended", "pool.closed"),
    ]


async def test_a_hook_that_raises_harms_nobody(world: World) -> None:
    seen: list[str] = []

    def on_event(event: str, fields: Mapping[str, Any]) -> None:
        seen.append(event)
        raise ZeroDivisionError

    async with world.pool(on_event=on_event) as pool:
        assert await pool.run(value=1) == 1
    assert seen[-1] == "pool.closed"


@pytest.mark.slow
async def test_a_hook_that_blocks_delays_neither_calls_nor_close(world: World) -> None:
    go_on = threading.Event()

    def on_event(event: str, fields: Mapping[str, Any]) -> None:
        go_on.wait(20)

    async with world.pool(on_event=on_event) as pool:
        for number in range(5):
            assert await pool.run(value=number) == number
        await pool.call("kill", (await pool.worker()).worker_id)
        assert await pool.run(value=1) == 1
    assert (await pool.stats()).workers == 0
    go_on.set()
