"""Deadlines of a pool over real workers that don't cooperate: each is absolute, whatever else goes on."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import dspool
from dspool.testing.pytest_plugin import MakePool
from tests.chaos.hanging import holds_gil_busy
from tests.chaos.witness import door

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.chaos]

PATIENCE_S = 30.0
LARGE = b"x" * 5_000_000


def length(data: bytes) -> int:
    return len(data)


def dribble() -> None:
    """Answer with the first bytes of a long frame, one at a time, for ever."""
    slot = int(sys.argv[sys.argv.index("--slots") + 1])
    os.write(slot, b"\x00\x10\x00\x00")
    while True:
        os.write(slot, b"x")
        time.sleep(0.005)


def worker_pid(pool: dspool.Pool) -> int:
    (worker,) = pool.workers()
    assert worker.pid is not None
    return worker.pid


def dead(pidfd: int) -> bool:
    """Whether the process is dead, waited for."""
    return bool(select.select([pidfd], [], [], PATIENCE_S)[0])


@pytest.mark.usefixtures("templates_without_dspy")
@pytest.mark.parametrize("start_method", ["template", "spawn"])
@pytest.mark.parametrize("how", ["preload", "warm"])
def test_a_start_that_hangs_is_given_up_and_the_error_says_where(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_method: str, how: str
) -> None:
    (tmp_path / "never_imported.py").write_text("import time\n\ndef never():\n    time.sleep(600)\n\nnever()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted: dict[str, Any] = {"preload": "never_imported"} if how == "preload" else {"warm": ["never_imported:never"]}
    with pytest.raises(dspool.WorkerStartError, match=r"not ready within (?s:.)*never_imported\.py") as caught:
        make_pool(workers=1, start_method=start_method, start_timeout_s=5.0, **wanted)
    report = caught.value.report
    assert report is not None
    if (start_method, how) == ("template", "preload"):  # no worker was ever forked: the template hangs
        assert report.pid is None
        assert report.detail.endswith("it imports 'never_imported'")
    else:
        assert report.signal == "SIGKILL"
        assert report.pid is not None
    assert report.reason == "start_timeout"
    assert "never_imported.py" in report.stack_dump


def test_a_request_that_is_never_read_ends_at_its_deadline(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    assert pool.run(length, {"data": LARGE}) == len(LARGE)
    first = worker_pid(pool)
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(dspool.CallTimeout) as caught:
        pool.run(length, {"data": LARGE}, timeout_s=0.2)
    assert caught.value.report is not None
    assert (caught.value.report.pid, caught.value.report.reason) == (first, "timeout")
    assert "no stack dump" in caught.value.report.detail
    assert pool.run(length, {"data": LARGE}) == len(LARGE)


def test_an_answer_that_never_ends_is_given_up_at_the_deadline(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    assert pool.run(length, {"data": b"abc"}) == 3  # this module is imported: its time is not the call's
    with pytest.raises(dspool.CallTimeout, match="in dribble"):
        pool.run(dribble, {}, timeout_s=0.5)
    assert pool.run(length, {"data": b"abc"}) == 3


def test_a_stop_that_is_not_obeyed_ends_in_a_kill(make_pool: MakePool) -> None:
    over = threading.Event()
    reports: list[dspool.ExitReport] = []

    def watch(event: str, fields: Any) -> None:
        if event in ("worker.ended", "worker.lost"):
            reports.append(fields["report"])
            over.set()

    pool = make_pool(workers=1, grace_s=0.2, on_event=watch)
    pid = worker_pid(pool)
    os.kill(pid, signal.SIGSTOP)
    pool.resize(0)
    assert over.wait(PATIENCE_S)
    assert [(report.pid, report.reason, report.signal) for report in reports] == [(pid, "resized", "SIGKILL")]


def test_a_close_ends_workers_that_are_stopped_or_hold_the_interpreter(make_pool: MakePool) -> None:
    pool = make_pool(workers=2)
    with door() as entry:
        call = threading.Thread(target=_expect_closed, args=(pool, holds_gil_busy, {"door": entry.path}))
        call.start()
        (busy,) = entry.arrivals(1)
    (idle,) = [worker.pid for worker in pool.workers() if worker.pid != busy]
    assert idle is not None
    pidfds = [os.pidfd_open(pid) for pid in (busy, idle)]
    try:
        os.kill(idle, signal.SIGSTOP)
        pool.close(0.2)
        call.join(PATIENCE_S)
        assert not call.is_alive()
        assert all(dead(fd) for fd in pidfds)
    finally:
        for fd in pidfds:
            os.close(fd)


def _expect_closed(pool: dspool.Pool, program: Any, inputs: dict[str, Any]) -> None:
    with pytest.raises(dspool.PoolClosed):
        pool.run(program, inputs)
