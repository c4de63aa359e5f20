"""pool.wrap and dspy.streamify in an application that runs on trio."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
import trio

import dspool
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool
from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow]

QUESTION = "why is the sky so very blue today?"
DEADLINE_S = 60
KINDS = ["pool", "async pool"]


@pytest.fixture
def opened(make_pool: MakePool, make_async_pool: MakeAsyncPool) -> Callable[..., Any]:
    """A pool of either kind, which a task of trio opens."""

    @contextlib.asynccontextmanager
    async def opened(kind: str, **options: Any) -> AsyncIterator[Any]:
        if kind == "pool":
            yield make_pool(**options)
        else:
            async with make_async_pool(**options) as pool:
                yield pool

    return opened


@pytest.fixture(autouse=True)
def _no_limiter_of_asyncio(monkeypatch: pytest.MonkeyPatch, dspy: Any) -> None:
    """DSPy keeps the limiter of its threads for the process, and on another kind of loop it is of no use."""
    monkeypatch.setattr(sys.modules["dspy.utils.asyncify"], "_limiter", None)


async def streamed(program: Any, dspy: Any) -> list[Any]:
    """All that streamify gives, with and without a listener."""
    found: list[Any] = []
    for listeners in ([], [dspy.streaming.StreamListener("answer")]):
        async for piece in dspy.streamify(program, stream_listeners=listeners)(question=QUESTION):
            kind = type(piece).__name__
            if kind == "EngineChunk":
                found.append((kind, [dict(choice) for choice in piece.choices]))
            else:
                found.append((kind, dict(piece.items()) if kind == "Prediction" else vars(piece)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_streamify_gives_what_it_gives_in_process(opened: Any, programs: Any, dspy: Any, kind: str) -> None:
    async def main() -> None:
        with trio.fail_after(DEADLINE_S), StubLM() as stub, dspy.context(lm=stub.lm(cache=False)):
            async with opened(kind, workers=1) as pool:
                program = dspy.Predict("question -> answer")
                expected = await streamed(program, dspy)
                assert await streamed(pool.wrap(program), dspy) == expected
                assert len(expected) > 10
                # DSPy itself streams no async program on trio: its LMs ask asyncio for the loop.
                assert len(await streamed(pool.wrap(programs.Aloud()), dspy)) > 10

    trio.run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancelled_call_closes_its_request_and_keeps_the_worker(opened: Any, dspy: Any, kind: str) -> None:
    async def main() -> Any:
        async with opened(kind, workers=1, execution="async", slots=2) as pool:
            wrapped = pool.wrap(dspy.Predict("question -> answer"))
            with StubLM(latency=600) as hanging, dspy.context(lm=hanging.lm(cache=False)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(wrapped.acall, question=QUESTION))
                    await until(hanging, lambda stats: stats.in_flight == 1)
                    nursery.cancel_scope.cancel()
                await until(hanging, lambda stats: stats.aborted == 1)
            with StubLM() as stub, dspy.context(lm=stub.lm(cache=False)):
                assert (await wrapped.acall(question="q")).answer == "echo: q"
            return pool.stats() if kind == "pool" else await pool.stats()

    stats = trio.run(main)
    assert (stats.calls_ok, stats.calls_cancelled, stats.started, stats.exits) == (1, 1, 1, {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_is_left_closes_its_request_and_keeps_the_worker(opened: Any, dspy: Any, kind: str) -> None:
    async def main() -> Any:
        async with opened(kind, workers=1) as pool:
            stream = dspy.streamify(pool.wrap(dspy.Predict("question -> answer")))
            with StubLM(piece_interval_s=0.05) as slow, dspy.context(lm=slow.lm(cache=False)):
                with trio.fail_after(DEADLINE_S), trio.CancelScope() as scope:
                    async for _ in stream(question=QUESTION):
                        scope.cancel()
                assert scope.cancelled_caught
                await until(slow, lambda stats: stats.in_flight == 0)
            return pool.stats() if kind == "pool" else await pool.stats()

    stats = trio.run(main)
    assert (stats.started, stats.exits) == (1, {})


async def until(stub: StubLM, condition: Callable[[Any], bool]) -> None:
    """Wait for the stub's counters."""
    await trio.to_thread.run_sync(partial(stub.wait, condition, timeout_s=DEADLINE_S))


def test_a_worker_that_dies_under_an_awaited_call_is_told_with_its_report(make_pool: MakePool, programs: Any) -> None:
    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            wrapped = make_pool(workers=1).wrap(programs.Dies())
            with pytest.raises(dspool.WorkerLost) as lost:
                await wrapped.acall()
            assert lost.value.report is not None

    trio.run(main)
