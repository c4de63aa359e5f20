"""Programs that come and go under load: no call fails for it, each call runs what its name stood for, nothing is kept.

Eight threads call a few names and never stop; meanwhile a thousand programs are created, put in their place, and
deleted. Counted are objects: what the store of the manager holds, and what each worker does.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import dspool
from dspool.protocol.messages import DefinedProgram, PickledProgram
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool
from tests.integration.pool import defined_parts

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PARTS = defined_parts.__name__
THREADS = 8
WORKERS = 2
KEPT = 8
"""Programs that a worker keeps."""
HOT = 4
"""Names that are called all the time; the last one's programs are plain callables."""
GROWTH_BYTES = 80_000
"""What the manager may have allocated more after five hundred rounds than after a hundred: 100 bytes for a program."""


def versioned(name: int, version: int) -> Any:
    """A program that answers with its version."""
    if name == HOT - 1:
        return functools.partial(defined_parts.version_of, version=version)
    return {"program_type": "program", "program": f"{PARTS}:Versioned", "arguments": {"version": version}}


def version_in(result: Any) -> int:
    return result if isinstance(result, int) else int(result.version)


class Crowd:
    """Threads that call the hot names until they are told to stop, and hold each answer against what was current."""

    def __init__(self, pool: dspool.Pool, current: list[int] | None = None) -> None:
        self.current = current or [0] * HOT
        self.calls = 0
        self.failures: list[BaseException] = []
        self._pool = pool
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(THREADS)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _call(self, number: int) -> None:
        try:
            while not self._stop.is_set():
                name = number % HOT
                before = self.current[name]
                version = version_in(self._pool.run(f"hot {name}", {}))
                # It is set after the program is registered: the one after it may have been there already.
                assert before <= version <= self.current[name] + 1, (before, version, self.current[name])
                self.calls += 1
                number += 1
        except BaseException as error:
            self.failures.append(error)


def turn_over(pool: dspool.Pool, crowd: Crowd, rounds: int) -> None:
    """Put a new program in the place of a hot one, create one beside it, run it, delete it."""
    for number in range(rounds):
        name, version = number % HOT, crowd.current[number % HOT] + 1
        pool.create_program(f"hot {name}", versioned(name, version), replace=True)
        crowd.current[name] = version
        other = f"other {number}"
        pool.create_program(other, {"signature": f"question -> answer{number}", "instructions": "Be brief."})
        if number % 10 == 0:
            pool.create_program(other, versioned(number % HOT, number), replace=True)
            assert version_in(pool.run(other, {})) == number
        pool.delete_program(other)


def in_each_worker(pool: dspool.Pool, function: Callable[[], Any]) -> list[Any]:
    """Run a function once in every worker."""
    with contextlib.ExitStack() as stack:
        leases = [stack.enter_context(pool.checkout()) for _ in range(WORKERS)]
        assert len({lease.worker and lease.worker.worker_id for lease in leases}) == WORKERS
        return [lease.run(function, {}) for lease in leases]


def held_here(pool: dspool.Pool) -> dict[str, int]:
    """What the manager holds of programs."""
    gc.collect()
    assert pool._control is not None
    store, core = pool._control.programs, pool._control.driver.core
    objects = [type(thing) for thing in gc.get_objects()]
    return {
        "programs": len(store._programs),
        "keys": len(store._keyed),
        "objects": len(store._objects),
        "names": len(pool.list_programs()),
        "specs": sum(kind in (PickledProgram, DefinedProgram) for kind in objects),
        "warm": max(len(worker.programs) for worker in core.workers.values()),
        "quarantine": len(core.quarantine.records) + len(core.quarantine.suspects),
    }


def test_a_thousand_programs_come_and_go_under_eight_threads_of_calls(make_pool: MakePool) -> None:
    pool = make_pool(workers=WORKERS, max_programs=KEPT)
    for name in range(HOT):
        pool.create_program(f"hot {name}", versioned(name, 0))
    crowd = Crowd(pool)
    with crowd:
        turn_over(pool, crowd, 50)
    workers, held = in_each_worker(pool, defined_parts.census), held_here(pool)
    crowd_again = Crowd(pool, crowd.current)
    with crowd_again:
        turn_over(pool, crowd_again, 1000)
    assert crowd.failures + crowd_again.failures == []
    assert crowd_again.calls > 1000
    held_now = held_here(pool)
    assert held_now.pop("specs") <= held.pop("specs")
    assert held_now == held
    assert held["names"] == HOT
    assert held["programs"] <= HOT + 1  # the census
    assert held["warm"] <= KEPT
    for before, after in zip(workers, in_each_worker(pool, defined_parts.census), strict=True):
        assert after["loaded"] == KEPT
        assert after["Versioned"] <= KEPT
        assert all(after[name] <= before[name] + KEPT for name in after), (before, after)
    stats = pool.stats()
    assert (stats.exits, stats.calls_failed, stats.calls_lost, stats.rejected) == ({}, 0, 0, {})


def test_the_manager_keeps_no_memory_of_programs_that_are_gone(make_pool: MakePool) -> None:
    pool = make_pool(workers=WORKERS, max_programs=KEPT)
    for name in range(HOT):
        pool.create_program(f"hot {name}", versioned(name, 0))
    crowd = Crowd(pool)  # nobody calls
    tracemalloc.start()
    try:
        turn_over(pool, crowd, 100)
        gc.collect()
        before = tracemalloc.take_snapshot()
        turn_over(pool, crowd, 400)
        gc.collect()
        growth = tracemalloc.take_snapshot().compare_to(before, "lineno")
    finally:
        tracemalloc.stop()
    assert sum(each.size_diff for each in growth) < GROWTH_BYTES, growth[:5]


def test_the_same_on_an_async_pool(make_async_pool: MakeAsyncPool) -> None:
    calls = 0

    async def call(pool: dspool.AsyncPool, current: list[int], stop: anyio.Event) -> None:
        nonlocal calls
        while not stop.is_set():
            before = current[0]
            version = version_in(await pool.run("hot", {}))
            assert before <= version <= current[0] + 1
            calls += 1

    async def main() -> None:
        async with make_async_pool(workers=WORKERS, max_programs=KEPT) as pool:
            await pool.create_program("hot", versioned(0, 0))
            current, stop = [0], anyio.Event()
            async with anyio.create_task_group() as tasks:
                for _ in range(THREADS):
                    tasks.start_soon(call, pool, current, stop)
                for version in range(1, 101):
                    await pool.create_program("hot", versioned(version % HOT, version), replace=True)
                    current[0] = version
                    await pool.create_program("other", versioned(0, version))
                    await pool.delete_program("other")
                stop.set()
            assert pool._control is not None
            assert len(pool._control.programs._programs) == 1
            assert (await pool.program_info("hot"))["workers"] != []
            stats = await pool.stats()
            assert (stats.exits, stats.calls_failed, stats.rejected) == ({}, 0, {})

    anyio.run(main)
    assert calls > 50
