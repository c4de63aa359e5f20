"""map: a program over many rows."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import dspool
from tests.contract.subject import World, beside


def rows_of(count: int) -> list[dict[str, Any]]:
    """Rows that echo their number."""
    return [{"do": "echo", "value": number} for number in range(count)]


async def test_map_gives_one_value_for_each_row_in_order(world: World) -> None:
    async with world.pool(workers=2) as pool:
        assert [value async for value in pool.map(rows_of(50))] == list(range(50))
        stats = await pool.stats()
        assert (stats.calls_ok, stats.leased) == (50, 0)


@pytest.mark.narrow
async def test_map_of_no_rows_gives_nothing(world: World) -> None:
    async with world.pool() as pool:
        assert [value async for value in pool.map([])] == []


async def test_map_runs_as_many_rows_at_once_as_there_are_slots(world: World) -> None:
    gate = world.gate()
    rows = [{"do": "meet", "path": gate.path, "value": number} for number in range(4)]
    async with world.pool(workers=2) as pool, beside() as calls:
        results: list[Any] = []

        async def consume() -> None:
            async for value in pool.map(rows):
                results.append(value)

        mapped = calls.start(consume)
        visitors = await gate.arrivals(2)
        assert gate.nobody()
        for visitor in visitors:
            visitor.let_go()
        for visitor in await gate.arrivals(2):
            visitor.let_go()
        await mapped.get()
        assert results == [0, 1, 2, 3]


@pytest.mark.narrow
async def test_unordered_map_gives_values_as_they_come(world: World) -> None:
    gate = world.gate()
    rows = [{"do": "meet", "path": gate.path, "value": "slow"}, *rows_of(3)]
    async with world.pool(workers=2) as pool:
        iterator = pool.map(rows, ordered=False)
        first = [await anext(iterator) for _ in range(3)]
        assert sorted(first) == [0, 1, 2]
        (await gate.arrival()).let_go()
        assert [value async for value in iterator] == ["slow"]


@pytest.mark.narrow
async def test_with_index_each_result_comes_with_the_number_of_its_row(world: World) -> None:
    gate = world.gate()
    rows = [{"do": "meet", "path": gate.path, "value": "slow"}, *rows_of(2), {"do": "fail", "message": "row 3"}]
    async with world.pool(workers=2) as pool:
        assert [pair async for pair in pool.map(rows_of(3), with_index=True)] == [(0, 0), (1, 1), (2, 2)]
        iterator = pool.map(rows, ordered=False, with_index=True, return_exceptions=True)
        found = dict([await anext(iterator) for _ in range(3)])
        assert found.keys() == {1, 2, 3}
        assert (found[1], found[2]) == (0, 1)
        assert isinstance(found[3], dspool.ProgramError)
        (await gate.arrival()).let_go()
        assert [pair async for pair in iterator] == [(0, "slow")]


@pytest.mark.narrow
async def test_an_exception_ends_the_map_where_its_row_stands(world: World) -> None:
    rows = [*rows_of(2), {"do": "fail", "message": "row 2"}, *rows_of(20)]
    async with world.pool(workers=2) as pool:
        iterator = pool.map(rows)
        assert [await anext(iterator), await anext(iterator)] == [0, 1]
        with pytest.raises(dspool.ProgramError, match="row 2"):
            await anext(iterator)
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)
        assert await pool.run(value=1) == 1
        assert (await pool.stats()).leased == 0


@pytest.mark.narrow
async def test_exceptions_can_be_returned_in_their_rows_place(world: World) -> None:
    rows = [*rows_of(1), {"do": "fail", "message": "row 1"}, {"value": object()}, *rows_of(1)]
    async with world.pool(workers=2) as pool:
        found = [value async for value in pool.map(rows, return_exceptions=True)]
        assert (found[0], found[3]) == (0, 0)
        assert isinstance(found[1], dspool.ProgramError)
        assert isinstance(found[2], dspool.EncodeError)


async def test_a_worker_lost_in_an_idempotent_map_costs_no_row(world: World) -> None:
    gate = world.gate()
    rows = [*rows_of(5), {"do": "meet", "path": gate.path, "value": 5}, *rows_of(5)]
    async with world.pool(workers=2) as pool, beside() as calls:

        async def consume() -> list[Any]:
            return [value async for value in pool.map(rows, idempotent=True)]

        mapped = calls.start(consume)
        world.backend.kill((await gate.arrival()).token)
        (await gate.arrival()).let_go()
        assert await mapped.get() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
        assert (await pool.stats()).retries == 1


async def test_leaving_a_map_early_cancels_what_runs(world: World) -> None:
    gate = world.gate()
    rows = [*rows_of(1), *({"do": "meet", "path": gate.path} for _ in range(50))]
    async with world.pool(workers=2) as pool:
        iterator = pool.map(rows)
        assert await anext(iterator) == 0
        visitors = await gate.arrivals(2)
        await iterator.aclose()  # type: ignore[attr-defined]
        for visitor in visitors:
            await visitor.gone()
        assert await pool.run(value=1) == 1
        stats = await pool.stats()
        assert (stats.leased, stats.waiting) == (0, 0)
        assert stats.checkouts < 12


@pytest.mark.narrow
async def test_a_map_takes_few_rows_ahead_of_its_caller(world: World) -> None:
    taken: list[int] = []

    def endless() -> Iterator[dict[str, Any]]:
        while True:
            taken.append(len(taken))
            yield {"value": taken[-1]}

    async with world.pool() as pool:
        iterator = pool.map(endless(), concurrency=2)
        assert [await anext(iterator) for _ in range(100)] == list(range(100))
        assert len(taken) <= 100 + 2 * 4
        await iterator.aclose()  # type: ignore[attr-defined]


@pytest.mark.narrow
async def test_rows_that_raise_end_the_map_with_their_exception(world: World) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"value": 1}
        raise ZeroDivisionError("in the rows")

    async with world.pool() as pool:
        iterator = pool.map(rows())
        assert await anext(iterator) == 1
        with pytest.raises(ZeroDivisionError, match="in the rows"):
            await anext(iterator)


@pytest.mark.narrow
@pytest.mark.only("asyncio", "trio")
async def test_rows_may_be_async(world: World) -> None:
    async def rows() -> AsyncIterator[dict[str, Any]]:
        for row in rows_of(5):
            yield row

    async with world.pool(workers=2) as pool:
        assert [value async for value in pool.map(rows())] == [0, 1, 2, 3, 4]


@pytest.mark.narrow
async def test_what_cannot_work_is_told_at_once(world: World) -> None:
    async with world.pool() as pool:
        with pytest.raises(dspool.OptionsError, match="concurrency"):
            pool.map(rows_of(1), concurrency=0)
        with pytest.raises(dspool.OptionsError, match="no argument 'timeout'"):
            pool.map(rows_of(1), timeout=1)


@pytest.mark.narrow
async def test_a_map_over_a_closed_pool_fails(world: World) -> None:
    async with world.pool() as pool:
        iterator = pool.map(rows_of(100))
        assert await anext(iterator) == 0
        await pool.call("close", 0.0)
        with pytest.raises(dspool.PoolClosed):
            [value async for value in iterator]


@pytest.mark.narrow
@pytest.mark.only("fake")
async def test_progress_is_one_plain_line_where_nobody_watches(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world.pool() as pool:
        rows = [*rows_of(3), {"do": "fail"}]
        assert len([value async for value in pool.map(rows, progress=True, return_exceptions=True)]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert ": 4 rows in " in line
    assert "1 failed" in line


@pytest.mark.narrow
@pytest.mark.only("pool")
async def test_maps_on_several_threads_share_a_pool(world: World) -> None:
    async with world.pool(workers=2) as pool:
        found: dict[int, list[Any]] = {}
        blocking = pool.pool
        assert isinstance(blocking, dspool.Pool)

        def consume(number: int) -> None:
            from dspool.testing.scripted import behave

            found[number] = list(blocking.map(behave, rows_of(20)))

        threads = [threading.Thread(target=consume, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        await pool.until(lambda stats: stats.calls_ok == 60)
        for thread in threads:
            thread.join()
        assert found == {number: list(range(20)) for number in range(3)}
