"""Who waits to write hears of an early answer too, on every loop: else it would be heard of at the deadline."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest

from dspool.pool.slot_pipe import SlotPipe
from dspool.pool.waits import AnyioWaits, AsyncioWaits, ThreadWaits, TrioWaits

pytestmark = pytest.mark.unit

LIMIT_S = 30.0
NO_DRIVER: Any = None
"""These waits ask nothing of it."""


@pytest.fixture
def ends() -> Iterator[tuple[SlotPipe, socket.socket]]:
    """A pipe that takes no more, and the worker's end of it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    pipe = SlotPipe(ours, 2**20)
    with suppress(BlockingIOError):
        while True:
            ours.send(bytes(65536))
    with theirs:
        yield pipe, theirs
        pipe.close()


@pytest.mark.parametrize(
    ("backend", "waits"),
    [("asyncio", AsyncioWaits), ("asyncio", ThreadWaits), ("asyncio", AnyioWaits), ("trio", TrioWaits)],
)
@pytest.mark.parametrize("early", [True, False])
def test_a_wait_to_write_ends_with_room_or_with_an_answer(
    backend: str, waits: Callable[[Any], AnyioWaits], early: bool, ends: tuple[SlotPipe, socket.socket]
) -> None:
    pipe, theirs = ends

    async def main() -> bool:
        waiting = waits(NO_DRIVER)
        deadline = time.monotonic() + LIMIT_S
        came: list[bool] = []

        async def wait() -> None:
            came.append(await waiting.write(pipe, deadline))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert not came
            if early:
                theirs.send(b"an answer to half a request")
            else:
                theirs.recv(2**20)
        return came == [True]

    assert anyio.run(main, backend=backend)
