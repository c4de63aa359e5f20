"""Hooks that raise, block, or call back into the pool; and close() from wherever a user may call it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio
import anyio.to_thread
import pytest

import dspool
from dspool.pool.core import commands as c
from dspool.pool.events import QUEUE_LENGTH, Events
from dspool.testing.fake import FakeLauncher
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool

DEADLINE_S = 20.0


def echo(**inputs: Any) -> Any:
    """A program."""
    return inputs


def fakes() -> FakeLauncher:
    """Workers that echo."""
    return FakeLauncher(lambda call: call.inputs)


# --- on_event ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt])
def test_whatever_a_hook_raises_it_is_told_of_the_next_event(make_pool: MakePool, raised: type[BaseException]) -> None:
    seen: list[str] = []

    def on_event(event: str, fields: Mapping[str, Any]) -> None:
        seen.append(event)
        raise raised

    pool = make_pool(workers=2, launcher=fakes(), on_event=on_event)
    assert pool.run(echo, {"value": 1}) == {"value": 1}
    pool.close()
    assert seen.count("worker.ready") == 2
    assert seen[-1] == "pool.closed"


def test_what_a_blocked_hook_is_not_told_of_is_counted_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked, go_on, seen = threading.Event(), threading.Event(), []

    def on_event(event: str, fields: Mapping[str, Any]) -> None:
        seen.append(event)
        blocked.set()
        go_on.wait(DEADLINE_S)

    events = Events("a-pool", on_event)
    said: list[str] = []
    monkeypatch.setattr(type(events._log), "_write", lambda log, level, event, fields: said.append(event))
    events.publish("first", {})
    assert blocked.wait(DEADLINE_S)
    for number in range(QUEUE_LENGTH + 50):
        events.publish(f"event-{number}", {})
    assert events.dropped == 50
    go_on.set()
    events.close(DEADLINE_S)
    assert len(seen) == QUEUE_LENGTH + 1
    assert said.count("hook.overrun") == 1


def test_the_stats_say_what_a_hook_was_not_told_of(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspool.pool.events.QUEUE_LENGTH", 0)
    seen: list[str] = []
    pool = make_pool(workers=1, launcher=fakes(), on_event=lambda event, fields: seen.append(event))
    pool.close()
    assert pool.stats().events_dropped >= 2
    assert seen == []


def test_a_hook_may_use_the_pool(make_pool: MakePool) -> None:
    answers: list[Any] = []
    done = threading.Event()

    def on_event(event: str, fields: Mapping[str, Any]) -> None:
        if event == "worker.lost":
            pool.wait_ready(timeout_s=DEADLINE_S)
            answers.extend([pool.run(echo, {"from": event}), pool.stats().calls_ok, len(pool.workers())])
            done.set()

    launcher = fakes()
    pool = make_pool(workers=1, launcher=launcher, on_event=on_event)
    launcher.kill(pool.workers()[0].worker_id)
    assert done.wait(DEADLINE_S)
    assert answers == [{"from": "worker.lost"}, 1, 1]


def test_close_in_an_event_hook_returns_at_once_and_the_hook_sees_the_end(make_pool: MakePool) -> None:
    seen: list[str] = []
    returned = threading.Event()

    def on_event(event: str, fields: Mapping[str, Any]) -> None:
        seen.append(event)
        if event == "worker.lost":
            pool.close()
            returned.set()

    launcher = fakes()
    pool = make_pool(workers=2, launcher=launcher, on_event=on_event)
    launcher.kill(pool.workers()[0].worker_id)
    assert returned.wait(DEADLINE_S)
    pool.close()
    assert seen[-1] == "pool.closed"
    with pytest.raises(dspool.PoolClosed):
        pool.run(echo, {})
    assert pool.stats().workers == 0


def test_an_async_pools_hook_may_close_it_through_its_loop(make_async_pool: MakeAsyncPool) -> None:
    closed: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def on_event(event: str, fields: Mapping[str, Any]) -> None:
            if event == "worker.lost":
                closed.append(asyncio.run_coroutine_threadsafe(pool.close(), loop))

        launcher = fakes()
        pool = await make_async_pool(workers=1, launcher=launcher, on_event=on_event).open()
        over = pool._driver.over
        launcher.kill((await pool.workers())[0].worker_id)
        assert await asyncio.to_thread(over.wait, DEADLINE_S)
        await pool.close()
        assert (await pool.stats()).workers == 0

    asyncio.run(main())
    assert len(closed) == 1


# --- the check hook ---------------------------------------------------------------------------------------------------


def test_a_check_hook_may_look_at_the_pool_and_close_it(make_pool: MakePool) -> None:
    seen: list[Any] = []

    def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> dspool.Verdict:
        seen.append((pool.stats().leased, pool.health().ready, len(pool.workers())))
        if request.session == "last":
            pool.close(0.0)
        return dspool.KEEP

    pool = make_pool(workers=2, launcher=fakes(), check=check)
    assert pool.run(echo, {"value": 1}) == {"value": 1}
    with pytest.raises(dspool.PoolClosed):
        pool.run(echo, {}, session="last")
    assert seen == [(1, 2, 2), (1, 2, 2)]
    assert pool.stats().workers == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_check_hook_may_close_the_pool(make_async_pool: MakeAsyncPool, backend: str) -> None:
    async def main() -> None:
        async def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> dspool.Verdict:
            await pool.close(0.0)
            return dspool.KEEP

        async with make_async_pool(workers=1, launcher=fakes(), check=check) as pool:
            with pytest.raises(dspool.PoolClosed):
                await pool.run(echo, {})
            assert (await pool.stats()).workers == 0

    anyio.run(main, backend=backend)


def test_a_check_hook_that_calls_through_the_worker_it_checks_ends_at_the_inner_calls_deadline(
    make_pool: MakePool,
) -> None:
    inner: list[str] = []

    def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> dspool.Verdict:
        if not inner:
            inner.append("asked")
            try:
                pool.run(echo, {}, timeout_s=0.05)  # the only worker is the one that is being checked
            except dspool.QueueTimeout:
                inner.append("too late")
        return dspool.KEEP

    pool = make_pool(workers=1, launcher=fakes(), check=check)
    assert pool.run(echo, {"value": 1}) == {"value": 1}
    assert inner == ["asked", "too late"]
    assert pool.stats().exits == {}


def test_a_check_hook_that_does_not_return_keeps_the_slot_until_its_calls_deadline(make_pool: MakePool) -> None:
    blocked, go_on, late = threading.Event(), threading.Event(), threading.Event()
    ended: list[BaseException] = []

    def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> dspool.Verdict:
        if request.session == "slow":
            blocked.set()
            go_on.wait(DEADLINE_S)
        return dspool.KEEP

    def on_event(event: str, fields: Mapping[str, Any]) -> None:
        if event == "hook.late":
            late.set()

    pool = make_pool(workers=1, launcher=fakes(), check=check, on_event=on_event)

    def call() -> None:
        with pytest.raises(dspool.QueueTimeout, match=r"had worker 1 .* the check hook still looked at it") as raised:
            pool.run(echo, {"value": 1}, session="slow", timeout_s=0.05)
        ended.append(raised.value)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        assert blocked.wait(DEADLINE_S)
        assert pool.run(echo, {"value": 2}) == {"value": 2}, "its only slot is free again"
        assert late.wait(DEADLINE_S)
        assert not ended
    finally:
        go_on.set()
        caller.join(DEADLINE_S)
    assert len(ended) == 1
    assert pool.run(echo, {"value": 3}) == {"value": 3}
    assert pool.stats().exits == {}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_call_runs_where_the_wait_for_its_hook_ended_before_the_deadline(
    make_async_pool: MakeAsyncPool, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    # As on uvloop, whose clock counts whole milliseconds: the wait was over, the deadline was still to come, and the
    # call was sent to a worker that no hook had judged.

    async def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> dspool.Verdict:
        await anyio.sleep(DEADLINE_S)
        return dspool.KEEP

    async def main() -> None:
        async with make_async_pool(workers=1, launcher=fakes(), check=check) as pool:
            with monkeypatch.context() as early:
                early.setattr("dspool.pool.waits._left", lambda deadline: 0.02)
                with pytest.raises(dspool.QueueTimeout, match="the check hook still looked at it"):
                    await pool.run(echo, {}, timeout_s=DEADLINE_S)
            stats = await pool.stats()
            assert (stats.queue_timeouts, stats.calls_ok, stats.leased, stats.exits) == (1, 0, 0, {})

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_an_async_hook_gives_too_late_is_not_warned_of(make_async_pool: MakeAsyncPool, backend: str) -> None:
    go_on, returned = threading.Event(), threading.Event()

    async def never_awaited() -> dspool.Verdict:
        return dspool.KEEP

    def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> Any:
        go_on.wait(DEADLINE_S)
        try:
            return never_awaited()
        finally:
            returned.set()

    async def main() -> None:
        async with make_async_pool(workers=1, launcher=fakes(), check=check) as pool:
            with pytest.raises(dspool.QueueTimeout):
                await pool.run(echo, {}, timeout_s=0.02)
            go_on.set()
            await anyio.to_thread.run_sync(returned.wait, DEADLINE_S)

    anyio.run(main, backend=backend)  # a warning is an error, told of when the coroutine is collected
    gc.collect()


@pytest.mark.parametrize("unshowable", ["raised", "returned"])
def test_a_hooks_answer_that_cannot_be_shown_removes_the_worker_and_no_more(
    make_pool: MakePool, unshowable: str
) -> None:
    class Odd(Exception):
        """Can't be shown."""

        def __repr__(self) -> str:
            raise ValueError("no text")

        __str__ = __repr__

    first = [True]

    def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> Any:
        if not first:
            return dspool.KEEP
        first.clear()
        if unshowable == "raised":
            raise Odd
        return Odd()

    pool = make_pool(workers=1, launcher=fakes(), check=check)
    assert pool.run(echo, {"value": 1}) == {"value": 1}
    assert pool.stats().removals == 1


def test_a_hook_that_raises_an_error_from_itself_is_no_endless_loop(make_pool: MakePool) -> None:
    first = [True]

    def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> dspool.Verdict:
        if first:
            first.clear()
            try:
                raise ValueError
            except ValueError as error:
                raise error from error
        return dspool.KEEP

    pool = make_pool(workers=1, launcher=fakes(), check=check)
    assert pool.run(echo, {"value": 1}) == {"value": 1}
    assert pool.stats().removals == 1


def test_a_deadline_that_comes_between_the_grant_and_the_hook_is_a_queue_timeout(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A slot is granted; 2. before its caller looks, the control plane finds it late and lends the slot."""
    pool = make_pool(workers=1, launcher=fakes(), check=lambda worker, request: dspool.KEEP)
    driver = pool._driver
    step = driver.step

    def slow(command: c.Command) -> None:
        step(command)
        if isinstance(command, c.Checkout):
            while time.monotonic() < command.deadline:
                time.sleep(0.001)
            step(c.Tick())

    monkeypatch.setattr(driver, "step", slow)
    with pytest.raises(dspool.QueueTimeout):
        pool.run(echo, {}, timeout_s=0.02)
    monkeypatch.undo()
    assert pool.run(echo, {"value": 1}) == {"value": 1}


# --- close() in the middle of a map, and of calls ---------------------------------------------------------------------


def test_close_by_the_rows_of_a_map(make_pool: MakePool) -> None:
    pool = make_pool(workers=2, launcher=fakes())

    def rows() -> Iterator[dict[str, int]]:
        for number in itertools.count():
            if number == 5:
                pool.close(0.0)
            yield {"n": number}

    with pytest.raises(dspool.PoolClosed):
        for _ in pool.map(echo, rows()):
            pass
    assert pool.stats().workers == 0


def test_close_between_a_maps_results(make_pool: MakePool) -> None:
    pool = make_pool(workers=2, launcher=fakes())
    seen: list[Any] = []

    def look() -> None:
        for value in pool.map(echo, ({"n": number} for number in itertools.count())):
            seen.append(value["n"])
            if len(seen) == 3:
                pool.close(0.0)

    with pytest.raises(dspool.PoolClosed):
        look()
    assert seen == list(range(len(seen)))
    assert pool.stats().workers == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_pool_closed_by_another_task_ends_everything_that_runs_on_it(
    make_async_pool: MakeAsyncPool, backend: str
) -> None:
    ends: dict[str, str] = {}

    async def main() -> None:
        running = anyio.Event()

        async def ends_with(name: str, use: Callable[[], Any]) -> None:
            try:
                await use()
            except dspool.PoolClosed:
                ends[name] = "PoolClosed"
            else:
                ends[name] = "done"

        async def rows() -> Any:
            for number in itertools.count():
                yield {"n": number}

        async def map_all() -> None:
            async for _ in pool.map(echo, rows()):
                running.set()

        async def run_all() -> None:
            while True:
                await pool.run(echo, {})

        async def lease_all() -> None:
            while True:
                async with await pool.checkout() as lease:
                    await lease.run(echo, {})

        async with anyio.create_task_group() as tasks:
            pool = await make_async_pool(workers=2, launcher=fakes()).open()
            uses: dict[str, Callable[[], Any]] = {"map": map_all, "run": run_all, "lease": lease_all}
            for name, use in uses.items():
                tasks.start_soon(ends_with, name, use)
            await running.wait()
            tasks.start_soon(ends_with, "drain", lambda: pool.drain(DEADLINE_S))
            tasks.start_soon(ends_with, "close", lambda: pool.close(0.0))
            tasks.start_soon(ends_with, "close again", lambda: pool.close(0.0))
        assert (await pool.stats()).workers == 0

    anyio.run(main, backend=backend)
    assert {ends[name] for name in ("map", "run", "lease")} == {"PoolClosed"}
    assert (ends["close"], ends["close again"]) == ("done", "done")


# --- threads that the system refuses ----------------------------------------------------------------------------------


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the system refuse threads whose names begin so; "": no more."""
    start, refused = threading.Thread.start, [""]

    def refuse_some(thread: threading.Thread) -> None:
        if refused[0] and thread.name.startswith(refused[0]):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_some)

    def names(prefix: str) -> None:
        refused[0] = prefix

    return names


def test_a_pool_that_gets_no_thread_says_so_and_leaves_nothing(
    no_leaks: None, pool_name: Callable[[], str], refuse: Callable[[str], None]
) -> None:
    refuse("dspool-control")
    pool = dspool.Pool(name=pool_name(), workers=1, launcher=fakes())
    with pytest.raises(dspool.PoolError, match="gets no thread from the system"):
        pool.open()
    pool.close()
    with pytest.raises(dspool.PoolClosed):
        pool.run(echo, {})


def test_a_map_that_gets_no_thread_says_so_and_the_pool_goes_on(
    make_pool: MakePool, refuse: Callable[[str], None]
) -> None:
    pool = make_pool(workers=1, launcher=fakes())
    refuse("dspool-map")
    with pytest.raises(dspool.PoolError, match="gets no thread from the system"):
        list(pool.map(echo, [{"n": 1}]))
    refuse("")
    assert list(pool.map(echo, [{"n": 1}])) == [{"n": 1}]


def test_events_wait_for_a_thread_that_the_system_refuses(make_pool: MakePool, refuse: Callable[[str], None]) -> None:
    seen: list[str] = []
    refuse("dspool-events")
    pool = make_pool(workers=1, launcher=fakes(), on_event=lambda event, fields: seen.append(event))
    assert pool.run(echo, {"value": 1}) == {"value": 1}
    assert seen == []
    refuse("")
    pool.close()
    assert (seen[0], seen[-1]) == ("worker.ready", "pool.closed")


def test_a_check_hook_that_gets_no_thread_costs_the_call_and_no_worker(
    make_async_pool: MakeAsyncPool, refuse: Callable[[str], None]
) -> None:
    async def main() -> None:
        async with make_async_pool(workers=2, launcher=fakes(), check=lambda worker, request: dspool.KEEP) as pool:
            refuse("dspool-check")
            with pytest.raises(dspool.PoolError, match="gets no thread from the system"):
                await pool.run(echo, {})
            refuse("")
            assert await pool.run(echo, {"value": 1}) == {"value": 1}
            stats = await pool.stats()
            assert (stats.removals, stats.exits, stats.leased) == (0, {}, 0)

    asyncio.run(main())


def test_a_pool_that_is_closed_without_a_thread_to_wait_for_its_hook_is_not_broken(
    make_pool: MakePool, refuse: Callable[[str], None]
) -> None:
    seen: list[str] = []
    over = threading.Event()

    def on_event(event: str, fields: Mapping[str, Any]) -> None:
        seen.append(event)
        if event == "pool.closed":
            over.set()

    pool = make_pool(workers=1, launcher=fakes(), on_event=on_event)
    refuse("AnyIO worker thread")
    pool.close()
    refuse("")
    assert over.wait(DEADLINE_S)
    assert seen[-1] == "pool.closed"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_pools_hooks_that_never_return_are_bounded(
    make_async_pool: MakeAsyncPool, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("dspool.pool.waits.HOOKS_LEFT", 3)
    go_on = threading.Event()
    asked: list[threading.Thread] = []

    def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> dspool.Verdict:
        asked.append(threading.current_thread())
        go_on.wait(DEADLINE_S)
        return dspool.KEEP

    async def main() -> None:
        async with make_async_pool(workers=1, launcher=fakes(), check=check) as pool:
            for _ in range(3):
                with pytest.raises(dspool.QueueTimeout):
                    await pool.run(echo, {}, timeout_s=0.02)
            with pytest.raises(dspool.PoolError, match="have not returned"):
                await pool.run(echo, {})
            assert len(asked) == 3
            assert all(thread.daemon for thread in asked), "they don't keep the interpreter from ending"
            go_on.set()
            assert pool._waits is not None
            with anyio.fail_after(DEADLINE_S):
                while pool._waits._hooks_left:  # noqa: ASYNC110  there is no event to wait for
                    await anyio.sleep(0.001)
            assert await pool.run(echo, {"value": 1}) == {"value": 1}
            assert (await pool.stats()).exits == {}

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_hooks_that_block_leave_the_applications_threads_to_it(make_async_pool: MakeAsyncPool, backend: str) -> None:
    go_on = threading.Event()

    def check(worker: dspool.WorkerInfo, request: dspool.CheckoutRequest) -> dspool.Verdict:
        go_on.wait(DEADLINE_S)
        return dspool.KEEP

    async def main() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        async with make_async_pool(workers=2, launcher=fakes(), check=check) as pool:
            for _ in range(2):
                with pytest.raises(dspool.QueueTimeout):
                    await pool.run(echo, {}, timeout_s=0.02)
            with anyio.fail_after(DEADLINE_S / 2):
                assert await anyio.to_thread.run_sync(threading.get_ident) != threading.get_ident()
            go_on.set()

    anyio.run(main, backend=backend)
