"""Limits of LMs that a pool's workers keep together: real workers, and a server that says when each request came.

No test asserts that something was fast. A request may come later than its turn, never earlier: so what is asserted of
times is the earliest that each may come, counted from before the first one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import dspool
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool
from dspool.testing.stub_lm import StubLM
from dspool.testing.stub_request import StubRequest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

QA = "question -> answer"
MODEL = "openai/stub"
HALF_A_SECOND = {"requests_per_minute": 120, "burst_s": 1}
"""Two at once, and then one each half second."""
ONCE = {"requests_per_minute": 1, "burst_s": 0}


@pytest.fixture
def came(dspy: Any) -> list[float]:
    """When each request came."""
    return []


@pytest.fixture
def stub(came: list[float]) -> Iterator[StubLM]:
    """The server that all the LMs lead to."""

    def answer(request: StubRequest) -> str:
        came.append(time.monotonic())
        return "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"

    with StubLM(answers=answer) as server:
        yield server


@pytest.fixture(params=["threads", "async"])
def execution(request: pytest.FixtureRequest) -> str:
    """Whether a worker's LM is called, or awaited."""
    return str(request.param)


@pytest.fixture
def program(execution: str, dspy: Any) -> Any:
    """Asks once; asynchronous of its own where it is to be awaited."""
    if execution == "threads":
        return dspy.Predict(QA)

    class Awaits(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict(QA)

        async def aforward(self, question: str) -> Any:
            return await self.predict.acall(question=question)

    return Awaits()


def ask(number: int = 0) -> dict[str, str]:
    """A question."""
    return {"question": f"q{number}"}


def none_too_early(came: list[float], began: float) -> None:
    """Fail where a request came before its turn by HALF_A_SECOND."""
    for number, at in enumerate(sorted(came)):
        assert at - began >= (number - 1) * 0.5


def refused(run: Callable[..., Any], *args: Any, **kwargs: Any) -> dspool.ProgramError:
    """The error of a call whose request was not sent."""
    with pytest.raises(dspool.ProgramError) as caught:
        run(*args, **kwargs)
    error = caught.value
    assert (error.code, error.retryable, error.status) == ("lm_error", True, None)
    assert error.details["lm_code"] == "throttled"
    assert error.retry_after_s is not None
    return error


@pytest.mark.parametrize("start_method", ["template", "spawn"])
def test_workers_share_a_limit(
    make_pool: MakePool, stub: StubLM, came: list[float], program: Any, execution: str, start_method: str
) -> None:
    limits = {MODEL: HALF_A_SECOND}
    pool = make_pool(workers=2, lm=stub.settings(), lm_limits=limits, execution=execution, start_method=start_method)
    began = time.monotonic()
    with pool.checkout() as one, pool.checkout() as two:
        for number, lease in enumerate((one, two, one, two, one)):
            assert lease.run(program, ask(number)).answer == "yes"
    assert len(came) == 5
    none_too_early(came, began)
    row = pool.stats().usage.by_model[MODEL]
    assert (row.calls, row.requests) == (5, 5)
    assert row.throttled <= 3
    assert row.throttled_s <= 1.5 + row.throttled


def test_calls_at_the_same_time_are_sent_one_after_the_other(
    make_pool: MakePool, stub: StubLM, came: list[float], program: Any, execution: str
) -> None:
    pool = make_pool(workers=2, slots=4, lm=stub.settings(), lm_limits={"*": HALF_A_SECOND}, execution=execution)
    began = time.monotonic()
    assert len(list(pool.map(program, map(ask, range(6)), concurrency=6))) == 6
    none_too_early(came, began)


def test_a_turn_after_the_deadline_fails_at_once_and_says_what_to_do(
    make_pool: MakePool, stub: StubLM, program: Any, execution: str
) -> None:
    pool = make_pool(workers=1, lm=stub.settings(), lm_limits={MODEL: ONCE}, execution=execution, timeout_s=50)
    pool.run(program, ask())
    began = time.monotonic()
    error = refused(pool.run, program, ask(1))
    assert time.monotonic() - began < 50  # before its deadline
    assert "did not ask its LM: [openai/stub] lm_limits allow requests_per_minute=1: the next turn is in" in str(error)
    assert str(error).endswith("send fewer calls at a time, or raise the limit")
    assert 10 < error.retry_after_s <= 60  # type: ignore[operator]
    assert stub.stats().requests == 1
    row = pool.stats().usage.by_model[MODEL]
    assert (row.calls, row.requests, row.throttled) == (2, 1, 1)
    assert pool.stats().exits == {}


def test_tokens_that_were_used_are_waited_for(make_pool: MakePool, stub: StubLM, program: Any, execution: str) -> None:
    limits = {MODEL: {"tokens_per_minute": 60, "burst_s": 0}}
    pool = make_pool(workers=2, lm=stub.settings(), lm_limits=limits, execution=execution, timeout_s=20)
    with pool.checkout() as one, pool.checkout() as two:
        tokens = one.run(program, ask()).get_lm_usage()[MODEL]["total_tokens"]
        error = refused(two.run, program, ask(1))
    assert "tokens_per_minute=60: what others used is paid off in" in str(error)
    assert 0 < error.retry_after_s <= tokens  # type: ignore[operator]  # a token a second


class RefusedFirst:
    """Faults of a server that answers its first requests with this status; when each request came."""

    def __init__(self, status: str, requests: int = 1) -> None:
        self.came: list[float] = []
        self._status = status
        self._requests = requests

    def __call__(self, request: StubRequest) -> str | None:
        self.came.append(time.monotonic())
        return self._status if len(self.came) <= self._requests else None


def test_a_429_that_one_worker_sees_holds_back_the_others(
    make_pool: MakePool, dspy: Any, program: Any, execution: str
) -> None:
    faults = RefusedFirst("429")
    with StubLM(faults=faults, retry_after_s=200) as stub:
        lm = stub.settings(num_retries=0)
        pool = make_pool(workers=2, lm=lm, execution=execution, timeout_s=50)
        with pool.checkout() as one, pool.checkout() as two:
            with pytest.raises(dspool.ProgramError) as caught:
                one.run(program, ask())
            assert (caught.value.status, caught.value.retry_after_s) == (429, 200.0)
            error = refused(two.run, program, ask(1))
            assert "[openai/stub] the provider asked this pool for a pause" in str(error)
            assert len(faults.came) == 1
            # Another key's requests, and another model's, go on.
            two.run(program, ask(2), lm={**lm, "api_key": "another-key"})
            two.run(program, ask(3), lm={**lm, "model": "openai/other"})
        assert len(faults.came) == 3
        assert pool.stats().usage.by_model[MODEL].throttled == 1


@pytest.mark.parametrize("limits", [{}, {MODEL: {"requests_per_minute": 6000, "tokens_per_minute": 1e9}}])
def test_what_a_429_holds_back_is_sent_after_it(
    make_pool: MakePool, dspy: Any, program: Any, execution: str, limits: dict[str, Any]
) -> None:
    faults = RefusedFirst("429")
    with StubLM(faults=faults, retry_after_s=1) as stub:
        pool = make_pool(workers=2, slots=2, lm=stub.settings(), execution=execution, lm_limits=limits)
        with pytest.raises(dspool.ProgramError):
            pool.run(program, ask(), lm=stub.settings(num_retries=0))
        for prediction in pool.map(program, map(ask, range(4))):
            assert prediction.answer.startswith("echo: q")
    first, *others = faults.came
    assert len(others) == 4
    assert min(others) - first >= 1


def test_streams_have_turns_too(make_pool: MakePool, stub: StubLM, came: list[float], dspy: Any) -> None:
    pool = make_pool(workers=2, lm=stub.settings(), lm_limits={MODEL: HALF_A_SECOND}, timeout_s=None)
    began = time.monotonic()
    for number in range(4):
        *_, prediction = pool.stream(QA, ask(number))
        assert prediction.answer == "yes"
    none_too_early(came, began)


def test_a_stream_whose_turn_comes_too_late_is_refused(make_pool: MakePool, stub: StubLM, dspy: Any) -> None:
    pool = make_pool(workers=1, lm=stub.settings(), lm_limits={MODEL: ONCE}, timeout_s=50)
    assert list(pool.stream(QA, ask()))[-1].answer == "yes"
    refused(list, pool.stream(QA, ask(1)))
    assert stub.stats().requests == 1


def test_retries_pass_the_limit_too(make_pool: MakePool, dspy: Any, program: Any, execution: str) -> None:
    faults = RefusedFirst("503", 2)
    with StubLM(faults=faults) as stub:  # which asks for no pause
        limits = {MODEL: {"requests_per_minute": 60, "burst_s": 0}}
        pool = make_pool(workers=1, lm=stub.settings(), lm_limits=limits, execution=execution, timeout_s=None)
        began = time.monotonic()
        pool.run(program, ask())
        assert [at - began >= number for number, at in enumerate(faults.came)] == [True, True, True]


@pytest.mark.parametrize("timeout_s", [None, 100])
def test_a_streams_retries_pass_it_too_as_long_as_nothing_was_sent(
    make_pool: MakePool, dspy: Any, program: Any, execution: str, timeout_s: float | None
) -> None:
    faults = RefusedFirst("503")
    with StubLM(faults=faults) as stub:
        limits = {MODEL: {"requests_per_minute": 24, "burst_s": 0}}
        pool = make_pool(workers=1, lm=stub.settings(), lm_limits=limits, execution=execution, timeout_s=timeout_s)
        began = time.monotonic()
        *pieces, prediction = pool.stream(program, ask())
        assert "".join(piece.chunk for piece in pieces) == prediction.answer == "echo: q0"
        assert [at - began >= 2.5 * number for number, at in enumerate(faults.came)] == [True, True]


@pytest.mark.parametrize("timeout_s", [None, 100])
def test_a_stream_that_breaks_off_is_not_begun_again(
    make_pool: MakePool, dspy: Any, program: Any, execution: str, timeout_s: float | None
) -> None:
    with StubLM(faults=["stall"]) as stub:
        pool = make_pool(workers=1, lm=stub.settings(timeout=2), execution=execution, timeout_s=timeout_s)
        with pytest.raises(dspool.ProgramError):
            list(pool.stream(program, ask()))
        assert stub.stats().requests == 1


@pytest.mark.parametrize("retry_after", [10**7, 10**12])
def test_a_provider_that_asks_for_years_has_refused(
    make_pool: MakePool, dspy: Any, program: Any, execution: str, retry_after: int
) -> None:
    with StubLM(faults=["429"], retry_after_s=retry_after) as stub:
        pool = make_pool(workers=1, lm=stub.settings(), execution=execution, timeout_s=None)
        with pytest.raises(dspool.ProgramError) as caught:
            pool.run(program, ask())
        assert (caught.value.status, caught.value.retry_after_s) == (429, retry_after)


def test_what_a_cache_answers_takes_no_turn(
    make_pool: MakePool, stub: StubLM, program: Any, execution: str, tmp_path: Path
) -> None:
    lm = stub.settings(cache=True)
    pool = make_pool(workers=2, lm=lm, lm_limits={"*": ONCE}, cache=tmp_path, execution=execution, timeout_s=30)
    with pool.checkout() as one, pool.checkout() as two:
        one.run(program, ask())
        for lease in (one, one, two, two):  # from its memory, and from the files that the other one wrote
            assert lease.run(program, ask()).answer == "yes"
        for lease in (one, two):
            refused(lease.run, program, ask(1))
    assert stub.stats().requests == 1
    assert pool.stats().usage.by_model[MODEL].throttled == 2


def test_a_cache_answers_while_a_provider_asks_for_a_pause(make_pool: MakePool, dspy: Any, tmp_path: Path) -> None:
    with StubLM(faults=["ok", "429"], retry_after_s=100) as stub:
        pool = make_pool(workers=1, lm=stub.settings(cache=True, num_retries=0), cache=tmp_path, timeout_s=30)
        pool.run(QA, ask())
        with pytest.raises(dspool.ProgramError):
            pool.run(QA, ask(1))
        pool.run(QA, ask())
        refused(pool.run, QA, ask(1))
        assert stub.stats().requests == 2


def die_in_the_middle_of_a_change() -> None:
    import dspy

    def step(state: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    dspy.settings.get("dspool_limits")._file.change(b"m" * 16, step)


def test_a_worker_that_is_killed_in_the_middle_of_a_change_stops_nobody(make_pool: MakePool, stub: StubLM) -> None:
    pool = make_pool(workers=2, lm=stub.settings(), lm_limits={MODEL: HALF_A_SECOND})
    with pytest.raises(dspool.WorkerLost):
        pool.run(die_in_the_middle_of_a_change, {})
    assert len(list(pool.map(QA, map(ask, range(4))))) == 4
    assert stub.stats().requests == 4


@pytest.mark.parametrize("kind", ["awaits", "blocks"])
def test_a_call_that_is_cancelled_while_it_waits_costs_no_worker(
    make_async_pool: MakeAsyncPool, stub: StubLM, dspy: Any, kind: str, tmp_path: Path
) -> None:
    fifo = tmp_path / "asks"
    os.mkfifo(fifo)

    def tell(fifo: str) -> None:
        Path(fifo).write_text("it begins")

    class Asks(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict(QA)

        def forward(self, question: str, told: str) -> Any:
            tell(told)
            return self.predict(question=question)

    class Awaits(Asks):
        async def aforward(self, question: str, told: str) -> Any:
            tell(told)
            return await self.predict.acall(question=question)

    program = Asks() if kind == "blocks" else Awaits()

    async def main() -> None:
        pool = make_async_pool(
            workers=1, lm=stub.settings(), lm_limits={MODEL: ONCE}, execution="async", timeout_s=100, cancel_grace_s=10
        )
        with anyio.fail_after(60):
            async with pool:
                pid = await pool.run(os.getpid, {})
                await pool.run(QA, ask())
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(pool.run, program, {**ask(1), "told": str(fifo)})
                    await anyio.to_thread.run_sync(fifo.read_text)
                    tasks.cancel_scope.cancel()
                assert await pool.run(os.getpid, {}) == pid
                assert (await pool.stats()).exits == {}
                with pytest.raises(dspool.ProgramError, match="the next turn is in") as late:
                    await pool.run(QA, ask(2), timeout_s=1)
                assert late.value.retry_after_s is not None
                assert late.value.retry_after_s <= 60  # the turn behind which it would come was given back
        assert stub.stats().requests == 1

    anyio.run(main)
