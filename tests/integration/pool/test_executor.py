"""dspool.Executor over real workers: calls, results, cancelling, deaths, initializers, and every way to end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import dataclasses
import gc
import os
import pickle
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import pytest

import dspool
from dspool.testing.pytest_plugin import MakePool
from tests.integration.pool.happenings import Happenings

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DEADLINE_S = 20.0
LONG_S = 1000.0
"""A call that is never waited for to its end."""
STATUS = "unset"
COUNTS: dict[str, int] = {}

MakeExecutor = Callable[..., dspool.Executor]


@pytest.fixture
def make_executor(no_leaks: None) -> Iterator[MakeExecutor]:
    """`make_executor(max_workers, **options)`: an Executor, shut down after the test."""
    made: list[dspool.Executor] = []

    def make(max_workers: int | None = 1, **options: Any) -> dspool.Executor:
        made.append(dspool.Executor(max_workers, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(wait=True, cancel_futures=True)


# --- what calls do ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    """No plain data."""

    x: int


class Picky(Exception):
    """Can't be rebuilt from its arguments."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)


class BadPickle:
    """Raises when it is pickled."""

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("not today")


class BadUnpickle:
    """Raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return fail, ("not there",)


class ExitAtUnpickle:
    """Exits where it is unpickled."""

    def __reduce__(self) -> Any:
        return sys.exit, (7,)


class CrashAtUnpickle:
    """Ends the process where it is unpickled."""

    def __reduce__(self) -> Any:
        return segfault, ()


class CrashAtPickle:
    """Ends the process where it is pickled."""

    def __reduce__(self) -> Any:
        segfault()


def make(kind: type) -> Any:
    return kind()


def same(value: Any) -> Any:
    return value


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def fail(text: str) -> NoReturn:
    raise ValueError(text)


def fail_pickily() -> NoReturn:
    raise Picky(3, "picky")


def segfault() -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def begin_and_sleep(path: str) -> None:
    """Say through the pipe who it is, then never end."""
    with open(path, "w") as pipe:
        pipe.write(str(os.getpid()))
    time.sleep(LONG_S)


def wait_for(path: str) -> int:
    """Until there is a line in the pipe."""
    with open(path) as pipe:
        pipe.readline()
    return os.getpid()


def set_status(text: str) -> None:
    global STATUS
    STATUS = text
    COUNTS["initializer"] = COUNTS.get("initializer", 0) + 1


def status() -> tuple[int, str, int]:
    return os.getpid(), STATUS, COUNTS["initializer"]


def named_pipe(folder: Path) -> str:
    """A pipe between a test and its calls."""
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


def begun(pipe: str) -> int:
    """Wait until begin_and_sleep() has begun; its pid."""
    fd = os.open(pipe, os.O_RDWR)
    try:
        assert select.select([fd], [], [], DEADLINE_S)[0], "the call has not begun"
        return int(os.read(fd, 20))
    finally:
        os.close(fd)


# --- calls and results ------------------------------------------------------------------------------------------------


def test_a_call_takes_any_arguments_and_its_result_is_what_it_was(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    assert executor.submit(pow, 2, 8).result(DEADLINE_S) == 256
    assert executor.submit(capture, 1, self=2, fn=3).result(DEADLINE_S) == ((1,), {"self": 2, "fn": 3})
    assert executor.submit(lambda point: point.x + 1, Point(4)).result(DEADLINE_S) == 5
    when = datetime.now(tz=UTC)
    value = {"a": (1, [Decimal("1.5"), {2, 3}]), (1, 2): when, None: b"\0", 2**70: frozenset({"x"})}
    back = executor.submit(same, value).result(DEADLINE_S)
    assert back == value
    assert type(back["a"]) is tuple


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (Point(1), "the result is a tests."),
        ({"a": [0, (Point(1),)]}, "the result['a'][1][0] is a "),
        ([{Point: 1}], "the result[0], key <class 'tests."),
        (bytearray(b"x"), "the result is a builtins.bytearray"),
    ],
)
def test_a_result_that_would_come_back_as_something_else_is_refused_by_name(
    make_executor: MakeExecutor, value: Any, place: str
) -> None:
    executor = make_executor()
    with pytest.raises(dspool.ProgramError, match="unpickle_results=True") as caught:
        executor.submit(same, value).result(DEADLINE_S)
    assert place in str(caught.value)
    assert caught.value.code == "not_plain"
    assert executor.submit(same, 1).result(DEADLINE_S) == 1, "the worker is as before"


def test_what_a_function_raises_is_a_program_error_with_its_traceback(make_executor: MakeExecutor) -> None:
    with pytest.raises(dspool.ProgramError, match="ValueError: boom") as caught:
        make_executor().submit(fail, "boom").result(DEADLINE_S)
    assert caught.value.type == "builtins.ValueError"
    assert caught.value.mro[:2] == ("builtins.ValueError", "builtins.Exception")
    assert "in fail" in caught.value.remote_traceback


def test_with_unpickle_results_objects_and_exceptions_come_back(make_executor: MakeExecutor) -> None:
    executor = make_executor(unpickle_results=True)
    assert executor.submit(same, Point(3)).result(DEADLINE_S) == Point(3)
    assert executor.submit(same, 5).result(DEADLINE_S) == 5
    with pytest.raises(ValueError, match="boom") as caught:
        executor.submit(fail, "boom").result(DEADLINE_S)
    assert type(caught.value) is ValueError
    assert isinstance(caught.value.__cause__, dspool.ProgramError)
    assert "in fail" in caught.value.__cause__.remote_traceback
    with pytest.raises(SystemExit):
        executor.submit(sys.exit, 3).result(DEADLINE_S)
    assert executor.pool.stats().calls_failed == 2


def raises_by_name(name: str) -> NoReturn:
    kinds: dict[str, type[BaseException]] = {
        "CancelledError": asyncio.CancelledError,
        "StopIteration": StopIteration,
        "SystemExit": SystemExit,
        "GeneratorExit": GeneratorExit,
    }
    raise kinds[name]("of the function's own")


@pytest.mark.parametrize("name", ["CancelledError", "StopIteration", "SystemExit", "GeneratorExit"])
def test_with_unpickle_results_what_a_coroutine_takes_for_its_own_comes_back_too(
    make_executor: MakeExecutor, name: str
) -> None:
    executor = make_executor(1, unpickle_results=True)
    error = executor.submit(raises_by_name, name).exception(DEADLINE_S)
    assert type(error).__name__ == name
    assert isinstance(error.__cause__ if error else None, dspool.ProgramError)
    assert executor.submit(abs, -1).result(DEADLINE_S) == 1


def test_an_exception_that_cannot_be_rebuilt_is_a_program_error_that_says_so(make_executor: MakeExecutor) -> None:
    with pytest.raises(dspool.ProgramError, match="Picky: picky") as caught:
        make_executor(unpickle_results=True).submit(fail_pickily).result(DEADLINE_S)
    assert any("could not be rebuilt here: TypeError" in note for note in caught.value.__notes__)


# --- pickles that go wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", [BadPickle(), threading.Lock()])
def test_a_call_that_cannot_be_pickled_fails_alone(make_executor: MakeExecutor, argument: Any) -> None:
    executor = make_executor()
    bad, good = executor.submit(same, argument), executor.submit(same, 1)
    with pytest.raises(dspool.EncodeError, match=r"test_executor\.same can't be pickled, because of its argument 1"):
        bad.result(DEADLINE_S)
    with pytest.raises(dspool.EncodeError, match=r"because of its argument 'value'"):
        executor.submit(same, value=argument).result(DEADLINE_S)
    assert good.result(DEADLINE_S) == 1


@pytest.mark.parametrize("argument", [BadUnpickle(), ExitAtUnpickle()])
def test_a_call_that_cannot_be_unpickled_calls_nothing(make_executor: MakeExecutor, argument: Any) -> None:
    for trusting in (False, True):
        executor = make_executor(unpickle_results=trusting)
        with pytest.raises(dspool.ProgramError, match="was not called: the call can't be unpickled") as caught:
            executor.submit(same, argument).result(DEADLINE_S)
        assert caught.value.code == "call_not_loaded"


def test_a_crash_while_something_is_unpickled_or_pickled_costs_that_call_alone(make_executor: MakeExecutor) -> None:
    executor = make_executor(unpickle_results=True)
    for doomed in (executor.submit(same, CrashAtUnpickle()), executor.submit(make, CrashAtPickle)):
        with pytest.raises(dspool.WorkerLost, match="SIGSEGV"):
            doomed.result(DEADLINE_S)
    assert executor.submit(same, 1).result(DEADLINE_S) == 1


def test_results_that_fail_on_their_way_fail_alone(make_executor: MakeExecutor) -> None:
    executor = make_executor(unpickle_results=True)
    with pytest.raises(pickle.PicklingError, match="not today"):
        executor.submit(make, BadPickle).result(DEADLINE_S)
    for kind, name in ((BadUnpickle, "ValueError"), (ExitAtUnpickle, "SystemExit")):
        with pytest.raises(dspool.ProgramError, match=f"can't be unpickled here: {name}") as caught:
            executor.submit(make, kind).result(DEADLINE_S)
        assert caught.value.code == "decode_error"
    assert executor.submit(same, 1).result(DEADLINE_S) == 1


def test_large_arguments_and_results_pass_and_too_large_ones_fail_alone(make_executor: MakeExecutor) -> None:
    executor = make_executor(max_frame_bytes=2**20)
    assert len(executor.submit(same, "x" * 1_000_000).result(DEADLINE_S)) == 1_000_000
    with pytest.raises(dspool.EncodeError, match="max_frame_bytes"):
        executor.submit(len, "x" * 2_000_000).result(DEADLINE_S)
    with pytest.raises(dspool.ProgramError, match="max_frame_bytes"):
        executor.submit(eval, "'x' * 2_000_000").result(DEADLINE_S)


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_cancelling_a_call_that_runs_ends_it_and_its_worker(make_executor: MakeExecutor, tmp_path: Path) -> None:
    happenings = Happenings()
    executor = make_executor(1, on_event=happenings)
    pipe = named_pipe(tmp_path)
    running = executor.submit(begin_and_sleep, pipe)
    waiting = executor.submit(os.getpid)
    pid = begun(pipe)
    assert running.running()
    assert "state=running" in repr(running)
    told: list[bool] = []
    running.add_done_callback(lambda future: told.append(future.cancelled()))
    assert running.cancel()
    assert running.cancelled()
    assert running.cancel(), "again is nothing"
    assert told == [True]
    done, _ = concurrent.futures.wait([running], DEADLINE_S)
    assert done == {running}
    report = happenings.wait("worker.ended")["report"]
    assert (report.pid, report.reason) == (pid, "cancelled")
    assert waiting.result(DEADLINE_S) != pid
    assert executor.pool.stats().calls_cancelled == 1


def test_a_call_that_waits_is_cancelled_without_cost(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor(1)
    pipe = named_pipe(tmp_path)
    running = executor.submit(begin_and_sleep, pipe)
    waiting = [executor.submit(os.getpid) for _ in range(10)]
    begun(pipe)
    assert all(future.cancel() for future in waiting)
    assert running.running()
    running.cancel()
    futures: list[concurrent.futures.Future[Any]] = [running, *waiting]
    assert set(concurrent.futures.as_completed(futures, DEADLINE_S)) == set(futures)
    assert executor.submit(os.getpid).result(DEADLINE_S) > 0
    assert executor.pool.stats().exits == {"cancelled": 1}


def test_a_call_that_is_over_cannot_be_cancelled(make_executor: MakeExecutor) -> None:
    future = make_executor().submit(same, 1)
    assert future.result(DEADLINE_S) == 1
    assert not future.cancel()
    assert not future.running()


def test_in_a_worker_with_several_slots_cancelling_leaves_the_neighbours_alone(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    executor = make_executor(1, slots=3)
    pipe, go = named_pipe(tmp_path), str(tmp_path / "go")
    os.mkfifo(go)
    neighbour = executor.submit(wait_for, go)
    running = executor.submit(begin_and_sleep, pipe)
    pid = begun(pipe)
    assert running.cancel()
    with open(go, "w") as writer:
        writer.write("go\n")
    assert neighbour.result(DEADLINE_S) == pid


def test_a_task_that_is_cancelled_ends_its_call(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor, pipe = make_executor(1), named_pipe(tmp_path)

    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(executor, begin_and_sleep, pipe)
        first = await asyncio.to_thread(begun, pipe)
        running.cancel()
        return first, await asyncio.wait_for(loop.run_in_executor(executor, os.getpid), DEADLINE_S)

    first, second = asyncio.run(main())
    assert first != second


# --- deaths -----------------------------------------------------------------------------------------------------------


def test_a_workers_death_fails_its_own_call_alone(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    doomed = [executor.submit(die) for _ in range(5)]
    fine = [executor.submit(same, number) for number in range(50)]
    for future in doomed:
        with pytest.raises(dspool.WorkerLost, match="SIGKILL"):
            future.result(DEADLINE_S)
    assert [future.result(DEADLINE_S) for future in fine] == list(range(50))
    assert executor.submit(same, 1).result(DEADLINE_S) == 1


def test_a_function_that_keeps_ending_workers_can_be_refused_and_others_go_on(make_executor: MakeExecutor) -> None:
    executor = make_executor(1, quarantine_after=2)
    for _ in range(2):
        with pytest.raises(dspool.WorkerLost):
            executor.submit(die).result(DEADLINE_S)
    with pytest.raises(dspool.ProgramQuarantined):
        executor.submit(die).result(DEADLINE_S)
    assert executor.submit(same, 1).result(DEADLINE_S) == 1


def test_a_fault_of_the_executors_own_fails_the_calls_instead_of_leaving_them(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(1)
    assert executor.submit(same, 1).result(DEADLINE_S) == 1

    def broken() -> int:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(executor._dispatcher, "_width", broken)
    with pytest.raises(dspool.ExecutorBroken, match="a fault"):
        executor.submit(same, 2).result(DEADLINE_S)
    with pytest.raises(dspool.ExecutorBroken, match="a fault"):
        executor.submit(same, 3)


def test_a_call_with_a_deadline_is_ended_by_it(make_executor: MakeExecutor) -> None:
    executor = make_executor(1, timeout_s=0.5, min_ready=1)  # a worker's start counts too
    with pytest.raises(dspool.CallTimeout):
        executor.submit(time.sleep, LONG_S).result(DEADLINE_S)


# --- initializers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_the_initializer_runs_once_in_each_worker_before_its_first_call(
    make_executor: MakeExecutor, workers: int
) -> None:
    executor = make_executor(workers, initializer=set_status, initargs=("ready",))
    seen = [future.result(DEADLINE_S) for future in [executor.submit(status) for _ in range(40)]]
    assert {(text, count) for _, text, count in seen} == {("ready", 1)}
    with pytest.raises(dspool.WorkerLost) as caught:
        executor.submit(die).result(DEADLINE_S)
    later = [future.result(DEADLINE_S) for future in [executor.submit(status) for _ in range(40)]]
    assert {(text, count) for _, text, count in later} == {("ready", 1)}
    assert caught.value.report is not None
    assert caught.value.report.pid not in {pid for pid, _, _ in later}


def test_the_initializer_runs_in_the_workers_of_a_pool_that_is_given(
    make_executor: MakeExecutor, make_pool: MakePool
) -> None:
    pool = make_pool(workers=1, max_programs=1)
    executor = make_executor(None, pool=pool, initializer=set_status, initargs=("given",))
    assert executor.submit(status).result(DEADLINE_S)[1:] == ("given", 1)
    assert pool.run(same, {"value": 1}) == 1  # puts the executor's program out of the worker's table
    assert executor.submit(status).result(DEADLINE_S)[1:] == ("given", 1)
    executor.shutdown()
    assert pool.run(same, {"value": 1}) == 1


@pytest.mark.parametrize("given", [False, True])
def test_an_initializer_that_fails_breaks_the_executor(
    make_executor: MakeExecutor, make_pool: MakePool, given: bool
) -> None:
    options: dict[str, Any] = {"max_workers": 2}
    if given:
        options = {"max_workers": None, "pool": make_pool(workers=2)}
    executor = make_executor(**options, initializer=fail, initargs=("no database",))
    futures = [executor.submit(same, number) for number in range(10)]
    for future in futures:
        with pytest.raises(concurrent.futures.BrokenExecutor, match="no database") as caught:
            future.result(DEADLINE_S)
        assert isinstance(caught.value, dspool.PoolBroken)
    with pytest.raises(dspool.ExecutorBroken, match="no database"):
        executor.submit(same, 1)


def test_an_initializer_that_cannot_be_pickled_is_refused_at_once() -> None:
    with pytest.raises(dspool.EncodeError, match="the initializer can't be pickled, because of"):
        dspool.Executor(1, initializer=same, initargs=(threading.Lock(),))


# --- map --------------------------------------------------------------------------------------------------------------


def test_map_gives_results_in_order_whatever_the_chunks(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    expected = list(map(pow, range(40), range(40)))
    for chunksize in (1, 6, 40, 50):
        for buffersize in (None, 1, 3):
            mapped = executor.map(pow, range(40), range(50), chunksize=chunksize, buffersize=buffersize)
            assert list(mapped) == expected
    assert list(executor.map(same, [])) == []
    for wrong in ({"chunksize": 0}, {"buffersize": 0}):
        with pytest.raises(ValueError, match="size must be"):
            executor.map(same, [1], **wrong)


def test_map_with_a_buffer_takes_no_more_rows_than_that_ahead(make_executor: MakeExecutor) -> None:
    taken = 0

    def rows() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = make_executor(2).map(same, rows(), buffersize=4)
    assert [next(results) for _ in range(20)] == list(range(1, 21))
    assert taken <= 24
    results.close()  # type: ignore[attr-defined]


def test_map_raises_at_the_row_that_failed_and_ends_the_others(make_executor: MakeExecutor) -> None:
    executor = make_executor(2, unpickle_results=True)
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_past_its_timeout_ends_what_runs(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    assert executor.submit(same, 1).result(DEADLINE_S) == 1
    results = executor.map(time.sleep, [0, 0, LONG_S], timeout=2)
    assert [next(results), next(results)] == [None, None]
    with pytest.raises(TimeoutError):
        next(results)
    assert executor.submit(same, 1).result(DEADLINE_S) == 1


def test_no_result_is_kept_that_was_handed_out(make_executor: MakeExecutor) -> None:
    import weakref

    executor = make_executor(1, unpickle_results=True)
    for chunksize in (1, 3):
        for point in executor.map(Point, range(5), chunksize=chunksize):
            seen = weakref.ref(point)
            del point
            gc.collect()
            assert seen() is None


# --- ends -------------------------------------------------------------------------------------------------------------


def test_shutdown_lets_everything_finish_and_takes_nothing_more(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    futures = [executor.submit(time.sleep, 0.01) for _ in range(30)]
    executor.shutdown()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(same, 1)
    executor.shutdown()
    with pytest.raises(dspool.PoolClosed):
        executor.pool.run(same, {"value": 1})


def test_shutdown_can_cancel_what_waits(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor(1)
    os.mkfifo(tmp_path / "pipe")
    running = executor.submit(wait_for, str(tmp_path / "pipe"))
    waiting = [executor.submit(same, number) for number in range(50)]
    executor.shutdown(wait=False, cancel_futures=True)
    with open(tmp_path / "pipe", "w") as pipe:
        pipe.write("go\n")
    executor.shutdown(wait=True)
    assert running.result(0) > 0
    assert sum(future.cancelled() for future in waiting) >= 40
    assert all(future.done() for future in waiting)


def test_a_signal_handler_may_shut_down_in_the_middle_of_submit(make_executor: MakeExecutor) -> None:
    executor, main = make_executor(1), threading.get_ident()

    def shut_down(signum: int, frame: Any) -> None:
        executor.shutdown(wait=False)

    before = signal.signal(signal.SIGUSR1, shut_down)
    futures: list[Any] = []
    try:
        put = executor._dispatcher.put

        def put_and_be_interrupted(call: Any) -> None:
            if len(futures) == 3:
                signal.pthread_kill(main, signal.SIGUSR1)
            put(call)

        executor._dispatcher.put = put_and_be_interrupted  # type: ignore[method-assign]
        futures += [executor.submit(same, 0)]
        with pytest.raises(RuntimeError, match="after shutdown"):
            futures.extend(executor.submit(same, number) for number in range(1, 10))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not concurrent.futures.wait(futures, DEADLINE_S).not_done
    assert [future.result() for future in futures[:3]] == [0, 1, 2]


def test_shutdown_without_waiting_leaves_a_call_that_cannot_be_pickled_to_fail(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    assert executor.submit(same, 1).result(DEADLINE_S) == 1
    future = executor.submit(same, BadPickle())
    executor.shutdown(wait=False)
    with pytest.raises(dspool.EncodeError):
        future.result(DEADLINE_S)


def test_a_worker_is_used_again_and_replaced_after_max_requests(make_executor: MakeExecutor) -> None:
    happenings = Happenings()
    executor = make_executor(1, max_requests=100, on_event=happenings)
    pids = [executor.submit(os.getpid).result(DEADLINE_S) for _ in range(100)]
    assert len(set(pids[:80])) == 1
    report = happenings.wait("worker.ended")["report"]
    assert (report.pid, report.reason) == (pids[0], "recycle_requests")
    assert executor.submit(os.getpid).result(DEADLINE_S) != pids[0]


def test_shutdown_in_a_callback_does_not_wait_for_itself(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    future = executor.submit(same, 1)
    over = threading.Event()

    def end(_: Any) -> None:
        executor.shutdown(wait=True)
        over.set()

    future.add_done_callback(end)
    assert over.wait(DEADLINE_S)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_what_a_callback_raises_harms_no_call(
    make_executor: MakeExecutor, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fall_over(future: concurrent.futures.Future[Any]) -> NoReturn:
        raise kind("a callback's own")

    executor, called = make_executor(2), threading.Semaphore(0)
    futures = [executor.submit(same, number) for number in range(8)]
    for future in futures:
        future.add_done_callback(fall_over)
        future.add_done_callback(lambda _: called.release())
    assert [future.result(DEADLINE_S) for future in futures] == list(range(8))
    assert all(called.acquire(timeout=DEADLINE_S) for _ in futures)
    assert executor.submit(same, 9).result(DEADLINE_S) == 9
    assert "a callback's own" in caplog.text


def test_futures_that_shutdown_cancels_are_told_of_whatever_their_callbacks_raise(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    def fall_over(future: concurrent.futures.Future[Any]) -> NoReturn:
        raise SystemExit(3)

    executor, pipe = make_executor(1), named_pipe(tmp_path)
    first = executor.submit(wait_for, pipe)
    futures = [executor.submit(same, number) for number in range(20)]
    for future in futures[5:]:
        future.add_done_callback(fall_over)
    executor.shutdown(wait=False, cancel_futures=True)
    assert not concurrent.futures.wait(futures[5:], DEADLINE_S).not_done
    with open(pipe, "w") as go:
        go.write("go\n")
    assert isinstance(first.result(DEADLINE_S), int)
    assert not concurrent.futures.wait(futures, DEADLINE_S).not_done


def test_a_callback_that_raises_in_the_canceller_leaves_no_call_running(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    def fall_over(future: concurrent.futures.Future[Any]) -> NoReturn:
        raise SystemExit(3)

    executor, pipe = make_executor(1), named_pipe(tmp_path)
    future = executor.submit(begin_and_sleep, pipe)
    begun(pipe)
    future.add_done_callback(fall_over)
    with pytest.raises(SystemExit):
        future.cancel()
    assert executor.submit(same, 1).result(DEADLINE_S) == 1


def test_an_executor_that_was_never_used_started_nothing(make_executor: MakeExecutor) -> None:
    threads = threading.active_count()
    with make_executor(4) as executor:
        assert threading.active_count() == threads
    with pytest.raises(RuntimeError):
        executor.submit(same, 1)


def test_an_executor_that_is_let_go_of_finishes_what_it_took(no_leaks: None) -> None:
    executor = dspool.Executor(2)
    results = executor.map(same, range(10))
    del executor
    gc.collect()
    assert list(results) == list(range(10))


def test_an_interrupt_in_the_with_block_ends_what_runs(no_leaks: None, tmp_path: Path) -> None:
    pipe, submitted = named_pipe(tmp_path), []

    def interrupted() -> None:
        with dspool.Executor(1) as executor:
            submitted.append(executor.submit(begin_and_sleep, pipe))
            begun(pipe)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert submitted[0].cancelled()


def test_a_forked_process_cannot_submit(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    assert executor.submit(same, 1).result(DEADLINE_S) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads, which this is about
        pid = os.fork()
    if pid == 0:
        try:
            executor.submit(same, 1)
        except dspool.PoolClosed:
            executor.shutdown()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert executor.submit(same, 2).result(DEADLINE_S) == 2


def test_a_pool_that_is_closed_underneath_fails_the_calls(make_executor: MakeExecutor, make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    executor = make_executor(None, pool=pool)
    assert executor.submit(same, 1).result(DEADLINE_S) == 1
    pool.close()
    with pytest.raises(dspool.PoolClosed):
        executor.submit(same, 1).result(DEADLINE_S)


# --- many -------------------------------------------------------------------------------------------------------------


def test_many_calls_take_one_thread(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    assert executor.submit(same, 0).result(DEADLINE_S) == 0
    threads = threading.active_count()
    futures = [executor.submit(same, number) for number in range(5000)]
    assert threading.active_count() == threads
    assert [future.result(DEADLINE_S) for future in futures] == list(range(5000))


def test_any_thread_may_submit_and_cancel(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    wrong: list[Any] = []

    def use(number: int) -> None:
        for row in range(100):
            future = executor.submit(capture, number, row)
            if row % 10 == 3 and future.cancel():
                continue
            if future.result(DEADLINE_S) != ((number, row), {}):
                wrong.append((number, row))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * DEADLINE_S)
    assert wrong == []


def test_a_call_keeps_nothing_of_what_it_was_given(make_executor: MakeExecutor) -> None:
    import weakref

    executor = make_executor(1)
    point, gone = Point(1), threading.Event()
    weakref.finalize(point, gone.set)
    executor.submit(repr, point)
    del point
    assert gone.wait(DEADLINE_S)


# --- arguments --------------------------------------------------------------------------------------------------------


def test_arguments_that_cannot_work_are_told_before_anything_starts(make_pool: MakePool) -> None:
    for number in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            dspool.Executor(number)
    with pytest.raises(TypeError, match="initializer must be callable"):
        dspool.Executor(1, initializer="x")  # type: ignore[arg-type]
    with pytest.raises(dspool.OptionsError, match="start_method"):
        dspool.Executor(1, mp_context=None)
    with pytest.raises(dspool.OptionsError, match="max_requests"):
        dspool.Executor(1, max_tasks_per_child=3)
    with pytest.raises(dspool.OptionsError, match="an Executor has no option 'slot'; did you mean 'slots'"):
        dspool.Executor(1, slot=3)
    with pytest.raises(dspool.OptionsError, match=r"did you mean 'max_workers'\? There are .*initargs, .*unpickle"):
        dspool.Executor(max_worker=3)
    with pytest.raises(dspool.OptionsError, match="max_workers must be a whole number; it is '2'"):
        dspool.Executor("2")  # type: ignore[arg-type]
    pool = make_pool(workers=1)
    with pytest.raises(dspool.OptionsError, match=r"Executor\(pool=pool\)"):
        dspool.Executor(pool)  # type: ignore[arg-type]
    with pytest.raises(dspool.OptionsError, match="leave out max_workers, slots"):
        dspool.Executor(2, pool=pool, slots=1)
    with pytest.raises(dspool.OptionsError, match=r"dspool\.Pool"):
        dspool.Executor(pool=3)  # type: ignore[arg-type]


def test_a_pool_that_is_not_open_is_told_by_submit() -> None:
    executor = dspool.Executor(pool=dspool.Pool(workers=1))
    with pytest.raises(dspool.PoolClosed, match="not open"):
        executor.submit(same, 1)
