"""How a worker is: pings through its control pipe, memory samples from outside.

Mechanism only: when a worker is pinged, how many misses are too many and how much memory is too much is the core's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from dspool.supervisor.control import ControlPipe, Question
    from dspool.supervisor.life import WorkerProcess

RSS_INTERVAL_S = 5.0
_BATCH = 16
"""Workers sampled before others get their turn on the loop; a sample takes some 20 us."""


async def ping(control: ControlPipe, ask: Callable[[str, dict[str, Any]], Question], timeout_s: float) -> bool:
    """Whether the worker answers a ping in time.

    A pipe that is full of what the worker didn't read gets no more: that ping counts as unanswered.

    Args:
        control: the worker's control pipe.
        ask: writes a request to it, and sees to it that what the pipe doesn't take at once is written later.
        timeout_s: how long it has.
    """
    if control.blocked:
        await anyio.sleep(timeout_s)
        return False
    question = ask("ping", {})
    with anyio.move_on_after(timeout_s):
        return (await question.answer()).success
    control.give_up(question)
    return False


async def sample_rss(
    workers: Callable[[], Iterable[WorkerProcess]], sampled: Callable[[int, int], None], interval_s: float
) -> None:
    """Sample the resident memory of each ready worker every `interval_s`, for ever."""
    while True:
        await anyio.sleep(interval_s)
        for number, worker in enumerate(list(workers())):
            if number % _BATCH == _BATCH - 1:
                await checkpoint()
            rss_bytes = worker.sample_rss()
            if rss_bytes is not None:
                sampled(worker.worker_id, rss_bytes)
