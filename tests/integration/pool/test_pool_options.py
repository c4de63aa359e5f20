"""Options that only a real worker can show: what it loads before it is ready, its adapter, its memory."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import dspool
from dspool.supervisor.supervisor import Supervisor
from dspool.testing.pytest_plugin import MakePool
from tests.integration.pool.happenings import Happenings

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PATIENCE_S = 30.0
MIB = 2**20


@pytest.fixture
def frequent_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the workers' memory more often than every five seconds."""
    defaults = Supervisor.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "rss_interval_s", 0.02)


# --- warm -------------------------------------------------------------------------------------------------------------


def test_warm_programs_are_loaded_before_the_pool_is_open(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "warm_ones.py").write_text(
        "import os, pathlib\n"
        "pathlib.Path(__file__).with_name(f'loaded-{os.getpid()}').touch()\n"
        "def double(number):\n    return 2 * number\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    pool = make_pool(workers=2, warm=["warm_ones:double", os.getpid])
    loaded = {path.name for path in tmp_path.glob("loaded-*")}
    assert loaded == {f"loaded-{worker.pid}" for worker in pool.workers()}
    assert [worker.programs for worker in pool.workers()] == [2, 2]
    assert pool.run("warm_ones:double", {"number": 4}) == 8
    assert pool.run(os.getpid, {}) in {worker.pid for worker in pool.workers()}


def test_a_warm_program_that_cannot_be_loaded_fails_the_start_with_its_traceback(make_pool: MakePool) -> None:
    with pytest.raises(dspool.WorkerStartError, match="json:nothing_there") as caught:
        make_pool(workers=1, warm="json:nothing_there")
    assert "nothing_there" in (caught.value.remote_traceback or "")


# --- adapter ----------------------------------------------------------------------------------------------------------


def adapter_in_use() -> str:
    """The DSPy adapter that a program finds."""
    import dspy

    return type(dspy.settings.adapter).__name__


@pytest.mark.parametrize(
    ("adapter", "found"), [("json", "JSONAdapter"), ("xml", "XMLAdapter"), ("chat", "ChatAdapter")]
)
def test_programs_run_under_the_pools_adapter(make_pool: MakePool, adapter: str, found: str) -> None:
    assert make_pool(workers=1, adapter=adapter).run(adapter_in_use, {}) == found


def test_an_adapter_object_travels_with_its_settings(make_pool: MakePool) -> None:
    import dspy

    class Louder(dspy.JSONAdapter):
        """An adapter of the caller's own, in a scope that a worker can't import."""

    def found() -> Any:
        return type(dspy.settings.adapter).__name__, dspy.settings.adapter.volume

    adapter = Louder()
    adapter.volume = 11
    assert make_pool(workers=1, adapter=adapter).run(found, {}) == ("Louder", 11)


# --- max_rss_bytes ----------------------------------------------------------------------------------------------------

_kept: list[bytes] = []


def grow(mebibytes: int) -> int:
    """Hold on to so much memory; gives the worker's pid."""
    _kept.append(os.urandom(1) * (mebibytes * MIB))
    return os.getpid()


@pytest.mark.usefixtures("frequent_samples")
def test_a_worker_that_grows_is_replaced_while_calls_go_on(make_pool: MakePool) -> None:
    happenings = Happenings()
    pool = make_pool(workers=1, max_rss_bytes=200 * MIB, on_event=happenings)
    pid = pool.run(grow, {"mebibytes": 0})
    assert psutil.Process(pid).memory_info().rss < 150 * MIB
    assert pool.run(grow, {"mebibytes": 250}) == pid
    told = happenings.wait("worker.due")
    assert (told["worker_id"], told["reason"]) == (1, "recycle_memory")
    assert "max_rss_bytes=209,715,200" in told["detail"]
    calls = 0
    while pool.run(grow, {"mebibytes": 0}) == pid:
        calls += 1
    pool.wait_ready()
    report = happenings.wait("worker.ended")["report"]
    assert (report.worker_id, report.pid, report.reason) == (1, pid, "recycle_memory")
    assert report.peak_rss_bytes > 250 * MIB
    stats = pool.stats()
    assert (stats.calls_ok, stats.calls_lost, stats.replaced) == (calls + 3, 0, 1)
    assert stats.exits == {"recycle_memory": 1}


def grow_and_stay(mebibytes: int, path: str) -> int:
    """Grow, say so at this door, and go when somebody says something there."""
    pid = grow(mebibytes)
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(path)
        door.recv(1)
    return pid


@pytest.mark.usefixtures("frequent_samples")
def test_a_worker_that_grows_in_a_call_is_replaced_meanwhile_and_ends_after_that_call(
    make_pool: MakePool, tmp_path: Path
) -> None:
    happenings = Happenings()
    pool = make_pool(workers=1, max_rss_bytes=200 * MIB, on_event=happenings)
    path = str(tmp_path / "door")
    with socket.socket(socket.AF_UNIX) as door, ThreadPoolExecutor(1) as threads:
        door.settimeout(30)
        door.bind(path)
        door.listen()
        call = threads.submit(pool.run, grow_and_stay, {"mebibytes": 250, "path": path})
        with door.accept()[0] as guest:
            assert happenings.wait("worker.due")["reason"] == "recycle_memory"
            assert happenings.wait("worker.ready")["worker_id"] == 2
            other = pool.run(grow, {"mebibytes": 0})
            assert not call.done()
            guest.send(b"x")
        assert call.result(30) != other
    report = happenings.wait("worker.ended")["report"]
    assert (report.worker_id, report.reason, report.calls) == (1, "recycle_memory", 1)
    assert pool.stats().calls_lost == 0


@pytest.mark.usefixtures("frequent_samples")
def test_growth_is_counted_from_what_a_worker_has_after_its_first_call(make_pool: MakePool) -> None:
    happenings = Happenings()
    pool = make_pool(workers=1, max_rss_growth_bytes=150 * MIB, on_event=happenings)
    pid = pool.run(grow, {"mebibytes": 200})
    assert pool.run(grow, {"mebibytes": 10}) == pid
    while (rss_bytes := pool.workers()[0].rss_bytes or 0) < 210 * MIB:  # so it was sampled after its first answer
        assert pool.run(grow, {"mebibytes": 0}) == pid
    assert pool.run(grow, {"mebibytes": 180}) == pid, "what the first call needed is not growth"
    told = happenings.wait("worker.due")
    assert (told["worker_id"], told["reason"]) == (1, "recycle_memory")
    assert "more than after its first call" in told["detail"]
    assert happenings.wait("worker.ended")["report"].peak_rss_bytes > rss_bytes + 170 * MIB


@pytest.mark.usefixtures("frequent_samples")
def test_a_limit_below_what_a_worker_needs_is_told_of_and_replaces_no_idle_worker(make_pool: MakePool) -> None:
    happenings = Happenings()
    pool = make_pool(workers=1, max_rss_bytes=MIB, on_event=happenings)
    told = happenings.wait("worker.too_large")
    assert (told["worker_id"], told["max_rss_bytes"]) == (1, MIB)
    assert told["rss_bytes"] > MIB
    assert "raise it" in told["detail"]
    assert [worker.worker_id for worker in pool.workers()] == [1]
