"""dspool itself, as its users have it: default options but for the number of workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import dspool
from benchmarks.contestants.contestant import AsyncCall, Blocking, Contestant, InLoop, Program

BACKENDS = ("asyncio", "uvloop", "trio")


@contextmanager
def pool(workers: int, **options: Any) -> Iterator[Contestant]:
    """dspool.Pool."""
    with dspool.Pool(workers=workers, **options) as opened:

        def call(program: Program, value: Any) -> Any:
            return opened.run(program, {"value": value})

        yield Blocking("Pool", "dspool", call, kills=True)


@contextmanager
def async_pool(workers: int, backend: str, **options: Any) -> Iterator[Contestant]:
    """dspool.AsyncPool, on asyncio, uvloop or trio."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncCall]:
        async with dspool.AsyncPool(workers=workers, **options) as pool:

            async def call(program: Program, value: Any) -> Any:
                return await pool.run(program, {"value": value})

            yield call

    with InLoop(f"AsyncPool, {backend}", "dspool", opened, backend, kills=True).running() as contestant:
        yield contestant


def start_methods(wanted: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Those that dspool knows here, and those that it refuses."""
    known, refused = [], []
    for method in wanted:
        options: dict[str, Any] = {"start_method": method}
        try:
            dspool.PoolOptions(**options)
        except dspool.OptionsError:
            refused.append(method)
        else:
            known.append(method)
    return known, refused
