"""Sessions whose worker fails, over real workers: pinned anew, programs rebuilt, told once, bounded, never split."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import dspool
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool
from tests.integration.pool.happenings import Happenings

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DEADLINE_S = 20.0
MODES = ("hint", "strict", "strict_fail_fast")
STATE: dict[str, int] = {}
"""What a session leaves in its worker."""


def remember(key: str) -> list[int]:
    """Where this ran, and how often it did there for this key."""
    STATE[key] = STATE.get(key, 0) + 1
    return [os.getpid(), STATE[key]]


def die() -> None:
    """A call that takes its worker with it."""
    os.kill(os.getpid(), signal.SIGKILL)


def generation(pool: dspool.Pool, session: str) -> int:
    """How often a session lost its state."""
    return pool._driver.core.sessions.table[session].generation


@pytest.mark.parametrize("affinity", MODES)
def test_a_session_goes_on_elsewhere_when_its_worker_dies_and_its_programs_are_rebuilt(
    make_pool: MakePool, affinity: Any
) -> None:
    happenings = Happenings()
    pool = make_pool(workers=2, on_event=happenings, affinity=affinity)
    pool.create_program("remember", remember)
    first = pool.run("remember", {"key": "s"}, session="s")
    assert pool.run("remember", {"key": "s"}, session="s") == [first[0], 2]
    os.kill(first[0], signal.SIGKILL)
    happenings.wait("worker.lost")
    again = pool.run("remember", {"key": "s"}, session="s")
    assert again[0] != first[0]
    assert again[1] == 1
    assert pool.run("remember", {"key": "s"}, session="s") == [again[0], 2]
    assert generation(pool, "s") == 1
    stats = pool.stats()
    assert (stats.repins, stats.calls_lost, stats.spills) == (1, 0, 0)


@pytest.mark.parametrize("affinity", MODES)
def test_a_session_whose_call_killed_its_worker_is_told_once(make_pool: MakePool, affinity: Any) -> None:
    pool = make_pool(workers=2, affinity=affinity, quarantine_after=None)
    first, _ = pool.run(remember, {"key": "s"}, session="s")
    with pytest.raises(dspool.WorkerLost):
        pool.run(die, {}, session="s")
    with pytest.raises(dspool.SessionLost):
        pool.run(remember, {"key": "s"}, session="s", on_session_lost="error")
    again, count = pool.run(remember, {"key": "s"}, session="s", on_session_lost="error")
    assert (again != first, count, generation(pool, "s")) == (True, 1, 1)


def test_a_lease_sees_each_loss_once(make_pool: MakePool) -> None:
    happenings = Happenings()
    pool = make_pool(workers=2, on_event=happenings)
    for lost in range(3):
        with pool.checkout(session="s") as lease:
            assert lease.session_restarted == (lost > 0)
            pid, count = lease.run(remember, {"key": "s"})
            assert count == 1
        with pool.checkout(session="s") as lease:
            assert not lease.session_restarted
        assert generation(pool, "s") == lost
        os.kill(pid, signal.SIGKILL)
        happenings.wait("worker.lost")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_lease_sees_it_too(make_async_pool: MakeAsyncPool, backend: str) -> None:
    async def main() -> None:
        async with make_async_pool(workers=2, quarantine_after=None) as pool:
            first, _ = await pool.run(remember, {"key": "s"}, session="s", affinity="strict")
            with pytest.raises(dspool.WorkerLost):
                await pool.run(die, {}, session="s", affinity="strict")
            async with await pool.checkout(session="s", affinity="strict") as lease:
                assert lease.session_restarted
                assert (await lease.run(remember, {"key": "s"}))[0] != first

    anyio.run(main, backend=backend)


def test_calls_that_wait_for_a_worker_that_dies_go_to_one_other_worker(make_pool: MakePool) -> None:
    pool = make_pool(workers=3, affinity="strict")
    begun, answers = threading.Barrier(5), []

    def call() -> None:
        begun.wait(DEADLINE_S)
        answers.append(pool.run(remember, {"key": "s"}, session="s"))

    with pool.checkout(session="s") as lease:
        first, _ = lease.run(remember, {"key": "s"})
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        begun.wait(DEADLINE_S)
        while pool.stats().waiting < 4:
            threading.Event().wait(0.001)  # no event tells that a call waits
        with pytest.raises(dspool.WorkerLost):
            lease.run(die, {})
    for thread in threads:
        thread.join(DEADLINE_S)
    assert {pid for pid, _ in answers} == {answers[0][0]} != {first}
    assert sorted(count for _, count in answers) == [1, 2, 3, 4]


@pytest.mark.parametrize("how", ["recycle", "kill", "reload", "resize"])
def test_a_session_whose_worker_is_taken_away_loses_its_state_once(make_pool: MakePool, how: str) -> None:
    happenings = Happenings()
    pool = make_pool(workers=2, on_event=happenings, affinity="strict")
    pids = {}
    for name in ("a", "b"):  # one in each worker
        with pool.checkout() as other:
            pids[name], _ = pool.run(remember, {"key": name}, session=name)
            assert other.worker is not None
    with pool.checkout(session="a") as lease:
        assert lease.worker is not None
        worker_id = lease.worker.worker_id
    orders: dict[str, Callable[[], None]] = {
        "recycle": lambda: pool.recycle(worker_id),
        "kill": lambda: pool.kill(worker_id),
        "reload": pool.reload,
        "resize": lambda: pool.resize(0),
    }
    orders[how]()
    for _ in range(2 if how in ("reload", "resize") else 1):
        happenings.wait("worker.ended")
    if how == "resize":
        pool.resize(1)
    again, count = pool.run(remember, {"key": "a"}, session="a")
    assert (again != pids["a"], count, generation(pool, "a")) == (True, 1, 1)


def test_of_too_many_sessions_the_least_recently_used_are_forgotten_and_none_in_use(make_pool: MakePool) -> None:
    pool = make_pool(workers=1, slots=2, max_sessions=3)
    with pool.checkout(session="kept"):
        for name in "abcd":
            pool.run(remember, {"key": name}, session=name)
        pool.run(remember, {"key": "c"}, session="c")
        pool.run(remember, {"key": "e"}, session="e")
        table = pool._driver.core.sessions.table
        assert "kept" in table
        assert {"c", "e"} <= set(table)
        assert "a" not in table
        assert pool.stats().sessions == 3


def test_a_sessions_time_begins_anew_with_each_use(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    real, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead[0])
    pool = make_pool(workers=2, session_ttl_s=100.0, ping_interval_s=None)
    for name in ("used", "left"):
        pool.run(remember, {"key": name}, session=name)
    for _ in range(3):
        ahead[0] += 60.0
        pool.run(remember, {"key": "used"}, session="used")
    pool._driver.tick()
    assert set(pool._driver.core.sessions.table) == {"used"}
    assert pool.stats().exits == {}


def test_first_calls_of_a_thousand_sessions_from_64_threads_split_none(make_pool: MakePool) -> None:
    pool = make_pool(workers=4, affinity="strict", timeout_s=60.0, max_waiting=10_000)
    seen: dict[str, set[int]] = {f"s{number}": set() for number in range(1000)}
    begin, errors = threading.Barrier(64), []

    def calls(number: int) -> None:
        begin.wait(DEADLINE_S)
        try:
            for session in list(seen)[number // 4 :: 16]:  # four threads make the first calls of each session
                seen[session].add(pool.run(remember, {"key": session}, session=session)[0])
        except dspool.DspoolError as error:
            errors.append(error)

    threads = [threading.Thread(target=calls, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert {session: pids for session, pids in seen.items() if len(pids) != 1} == {}
    assert pool.stats().calls_ok == 4000
    assert len(set().union(*seen.values())) == 4
