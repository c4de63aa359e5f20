"""What an error says of the worker's end, each field of it, from real workers of both start methods."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import dspool
from dspool.supervisor import memory
from dspool.testing.pytest_plugin import MakePool

pytestmark = [pytest.mark.integration, pytest.mark.slow]

start_methods = pytest.mark.parametrize("start_method", ["template", "spawn"])
OOM_IS_COUNTED = memory.OomCounter().count() is not None


def fall() -> None:
    print("last words", file=sys.stderr)
    ctypes.string_at(0)


def ready() -> None:
    return None


def linger() -> None:
    print("still here")
    time.sleep(600)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def check_common(report: dspool.ExitReport | None, worker: dspool.WorkerInfo) -> dspool.ExitReport:
    """What is known of every end."""
    assert report is not None
    assert (report.worker_id, report.pid, report.start_method) == (worker.worker_id, worker.pid, worker.start_method)
    assert report.status_known
    assert report.age_s > 0
    assert (report.oom_kills is not None) == OOM_IS_COUNTED
    return report


def only_worker(pool: dspool.Pool) -> dspool.WorkerInfo:
    (worker,) = pool.workers()
    return worker


@start_methods
def test_a_crash(make_pool: MakePool, start_method: str) -> None:
    pool = make_pool(workers=1, start_method=start_method)
    assert pool.run("builtins:dict", {"a": 1}) == {"a": 1}
    worker = only_worker(pool)
    with pytest.raises(dspool.WorkerLost) as caught:
        pool.run(fall, {})
    report = check_common(caught.value.report, worker)
    assert (report.reason, report.signal, report.exit_code, report.calls) == ("crash", "SIGSEGV", None, 2)
    assert report.output_tail == "last words\n"
    assert report.stack_dump.startswith("Fatal Python error: Segmentation fault\n\nCurrent thread")
    assert "in fall" in report.stack_dump.split("\n\n")[1]
    if start_method == "template":
        assert (report.peak_rss_bytes or 0) > 2**20
    for part in ("crash (SIGSEGV)", f"pid {worker.pid}", "in its call number 2", "last words"):
        assert part in str(caught.value)


@pytest.mark.usefixtures("patient_dump")
@start_methods
def test_a_call_past_its_deadline(make_pool: MakePool, start_method: str) -> None:
    pool = make_pool(workers=1, start_method=start_method)
    worker = only_worker(pool)
    assert pool.run(ready, {}) is None  # this module is imported: its time is not the call's
    with pytest.raises(dspool.CallTimeout) as caught:
        pool.run(linger, {}, timeout_s=0.5)
    report = check_common(caught.value.report, worker)
    assert (report.reason, report.signal, report.exit_code, report.calls) == ("timeout", "SIGKILL", None, 2)
    assert report.output_tail == "still here\n"
    assert (report.peak_rss_bytes or 0) > 2**20
    first, second, *_ = report.stack_dump.split("\n\n")
    assert "in linger" in first
    assert "in linger" not in second
    text = str(caught.value)
    assert text.index("in linger") < text.index("in _serve_control")


@start_methods
def test_a_worker_that_cannot_start(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    source = "import sys\nprint('I tried', file=sys.stderr)\nraise RuntimeError('no luck')\n"
    (tmp_path / "unlucky.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(dspool.WorkerStartError, match="boot_error: RuntimeError: no luck") as caught:
        make_pool(workers=1, start_method=start_method, warm=["unlucky:program"])
    report = caught.value.report
    assert report is not None
    assert (report.reason, report.exit_code, report.signal, report.calls) == ("boot_error", 77, None, 0)
    assert report.pid is not None
    assert f"(pid {report.pid}," in str(caught.value)
    assert "I tried" in report.output_tail
    assert "unlucky.py" in report.remote_traceback


@start_methods
def test_a_sigkill_that_nobody_sent_is_no_matter_of_memory_where_there_is_enough(
    make_pool: MakePool, start_method: str
) -> None:
    pool = make_pool(workers=1, start_method=start_method)
    worker = only_worker(pool)
    with pytest.raises(dspool.WorkerLost) as caught:
        pool.run(be_killed, {})
    report = check_common(caught.value.report, worker)
    assert (report.reason, report.signal) == ("crash", "SIGKILL")
    assert "out of memory" not in str(caught.value)


def test_a_sigkill_that_nobody_sent_to_a_large_worker_is_perhaps_one(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 2**20)
    pool = make_pool(workers=1, start_method="template")
    worker = only_worker(pool)
    with pytest.raises(dspool.WorkerLost) as caught:
        pool.run(be_killed, {})
    report = check_common(caught.value.report, worker)
    assert (report.reason, report.signal) == ("oom_suspect", "SIGKILL")
    assert str(caught.value).count("perhaps out of memory") == 1
