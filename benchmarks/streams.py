"""How much later the first piece of a streamed answer comes through a pool than from DSPy in the same process.

  python -m benchmarks.streams             a minute
  python -m benchmarks.streams --quick

The program is a `dspy.ChainOfThought`, the LM a stub in a process of its own that sends an event every two
milliseconds, over HTTP. In process it is `dspy.streamify` with a listener for each field, of the async program, on one
event loop; the other ways are Pool.stream and AsyncPool.stream on one worker. They take turns in rounds, one stream
after the other; DSPy's cache is off and every question is new.

How to read it: "first p50 ms" is from the call to its first piece, "whole p50 ms" to the prediction.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import dspool
from benchmarks.contestants import peers
from benchmarks.harness.command import Benchmark, Row, Run, Scale, command
from benchmarks.harness.goals import Goal, best
from benchmarks.harness.plots import Figure
from benchmarks.harness.samples import Samples
from dspool.testing.stub_lm import StubLM

IN_PROCESS = "dspy.streamify in process"
FIELDS = ("reasoning", "answer")
PIECE_S = 0.002
SIZES: dict[Scale, tuple[int, int]] = {"full": (10, 20), "quick": (3, 10), "smoke": (1, 2)}
"""Rounds, and streams of each way in a round."""
Times = tuple[float, float]
Way = Callable[[], Awaitable[Times]]
_numbers = itertools.count()


def _inputs() -> dict[str, str]:
    return {"question": f"What is {next(_numbers)} + 2?"}


async def _timed(begin: Callable[[], AsyncIterator[Any]]) -> Times:
    """Seconds until a stream's first piece, and until its end."""
    began = time.perf_counter()
    first = 0.0
    last: Any = None
    async for piece in begin():
        first = first or time.perf_counter() - began
        last = piece
    took = time.perf_counter() - began
    if not last.answer.startswith("echo: What is"):
        raise RuntimeError(f"a stream ended with {last!r}")
    return first, took


def _timed_blocking(pool: dspool.Pool, program: Any) -> Times:
    began = time.perf_counter()
    stream = pool.stream(program, _inputs())
    next(stream)
    first = time.perf_counter() - began
    for _ in stream:
        pass
    return first, time.perf_counter() - began


async def _ways(stack: AsyncExitStack, stub: StubLM, run: Run) -> dict[str, Way]:
    """Every way that takes part."""
    import dspy

    program = dspy.ChainOfThought("question -> answer")
    dspy.configure(lm=stub.lm(), disable_history=True, trace=None)

    def in_process() -> AsyncIterator[Any]:
        listeners = [dspy.streaming.StreamListener(field) for field in FIELDS]
        stream: AsyncIterator[Any] = dspy.streamify(program, stream_listeners=listeners, is_async_program=True)(
            **_inputs()
        )
        return stream

    options: dict[str, Any] = {"workers": 1, "lm": stub.settings(), "warm": (program,)}
    run.progress("opening the pools")
    pool = stack.enter_context(dspool.Pool(**options))
    async_pool = await stack.enter_async_context(dspool.AsyncPool(**options))
    ways: dict[str, Way] = {
        "Pool.stream": lambda: asyncio.to_thread(_timed_blocking, pool, program),
        "AsyncPool.stream": lambda: _timed(lambda: async_pool.stream(program, _inputs())),
    }
    chosen = {name: way for name, way in ways.items() if run.wants(name)}
    return {IN_PROCESS: lambda: _timed(in_process), **chosen}


async def _measure(run: Run, stub: StubLM) -> list[Row]:
    rounds, streams = SIZES[run.scale]
    async with AsyncExitStack() as stack:
        ways = await _ways(stack, stub, run)
        first = {name: Samples() for name in ways}
        whole = {name: Samples() for name in ways}
        for number in range(rounds + 1):
            for name, way in ways.items():
                run.progress(f"round {number} of {rounds}: {name}")
                taken = [await way() for _ in range(streams)]
                if number:  # the first is for warmth
                    first[name].add([times[0] for times in taken], 0.0)
                    whole[name].add([times[1] for times in taken], 0.0)
    rows: list[Row] = []
    for name in ways:
        later = [ours - theirs for ours, theirs in zip(first[name].medians, first[IN_PROCESS].medians, strict=True)]
        rows.append(
            {
                "contestant": name,
                "kind": "peer" if name == IN_PROCESS else "dspool",
                "first_p50_ms": first[name].percentile(50) * 1e3,
                "first_p99_ms": first[name].percentile(99) * 1e3,
                "whole_p50_ms": whole[name].percentile(50) * 1e3,
                "later_ms": statistics.median(later) * 1e3,
                "samples": first[name].count,
            }
        )
    return rows


def measure(run: Run) -> list[Row]:
    """A row for each way."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # DSPy's first call would fetch a price list
    peers.quiet()
    with StubLM(process=True, piece_interval_s=PIECE_S) as stub:
        return asyncio.run(_measure(run, stub))


def show(rows: list[Row]) -> Mapping[str, tuple[Sequence[Row], Mapping[str, str]]]:
    """One table."""
    columns = {"placement": "", "contestant": "", "first_p50_ms": "first p50 ms", "first_p99_ms": "first p99 ms"}
    columns |= {"later_ms": "later by ms", "whole_p50_ms": "whole p50 ms", "samples": "streams"}
    return {"the first piece of a ChainOfThought": (rows, columns)}


def goals(rows: list[Row]) -> list[Goal]:
    """How much later the first piece may come."""
    judged = []
    for name in ("Pool.stream", "AsyncPool.stream"):
        row = best(rows, "later_ms", most=True, contestant=name)
        later = None if row is None else row["later_ms"]
        judged.append(Goal(f"{name}: its first piece comes later by", 5.0, later, unit="ms", against=IN_PROCESS))
    return judged


def figures(rows: list[Row]) -> list[Figure]:
    """None: it is three numbers."""
    return []


main = command(Benchmark("streams", __doc__, measure, show, goals, figures, quick_placements=("unpinned",)))

if __name__ == "__main__":
    main()
