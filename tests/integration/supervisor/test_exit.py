"""How workers end by themselves, and what their reports say."""

from __future__ import annotations

import os
import signal
import time

import pytest

from dspool.supervisor import life
from dspool.supervisor.memory import OomCounter
from tests.integration.supervisor.harness import collect, dead, lab, one_backend, tell, wait_dead

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.slow]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT", "SIGTERM"])
@one_backend
async def test_a_crash_names_its_signal(name: str) -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tell(worker, f"signal {name}")
        report = await tests.exited(worker)
        assert (report.reason, report.signal, report.exit_code) == ("crash", name, None)
        assert report.detail == f"killed by {name}"


@one_backend
async def test_a_crash_leaves_the_stacks_of_all_threads() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tell(worker, "crash")
        report = await tests.exited(worker)
        assert (report.reason, report.signal) == ("crash", "SIGSEGV")
        assert " in do_crash" in report.stack_dump
        assert " in serve_control" in report.stack_dump


@pytest.mark.parametrize(("code", "reason"), [(0, "exited"), (3, "exited"), (76, "protocol_error"), (77, "exited")])
@one_backend
async def test_an_exit_nobody_asked_for_has_its_code(code: int, reason: str) -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tell(worker, f"exit {code}")
        report = await tests.exited(worker)
        assert (report.reason, report.signal, report.exit_code) == (reason, None, code)
        assert report.detail == f"exit code {code}"


async def test_the_death_of_an_idle_worker_is_noticed() -> None:
    async with lab() as tests:
        worker, other = await tests.ready(), await tests.ready()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        report = await tests.exited(worker)
        assert (report.reason, report.signal) == ("crash", "SIGKILL")
        assert await tests.order(other, "say stdout fine") == "ok"


@one_backend
async def test_a_sigkill_after_an_out_of_memory_kill_is_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    async with lab() as tests:
        monkeypatch.setattr(OomCounter, "_read", lambda self: self._explained + 1)
        worker = await tests.ready()
        tell(worker, "signal SIGKILL")
        report = await tests.exited(worker)
        assert (report.reason, report.detail) == ("oom_suspect", "killed by SIGKILL, perhaps out of memory")


@one_backend
async def test_a_report_counts_the_out_of_memory_kills_of_the_workers_life(monkeypatch: pytest.MonkeyPatch) -> None:
    async with lab() as tests:
        monkeypatch.setattr(OomCounter, "count", lambda self: 5)
        worker = await tests.ready()
        monkeypatch.setattr(OomCounter, "count", lambda self: 7)
        tell(worker, "exit 3")
        assert (await tests.exited(worker)).oom_kills == 2


@one_backend
async def test_a_status_that_somebody_else_collected_is_unknown_and_never_zero() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        assert worker.pid is not None
        tell(worker, "exit 0")
        assert collect(worker.pid) == 0
        report = await tests.exited(worker)
        assert (report.reason, report.exit_code, report.signal, report.status_known) == ("exited", None, None, False)
        assert report.detail == "its exit status is unknown"


@one_backend
async def test_a_death_is_not_taken_for_the_kill_that_came_after_it() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tell(worker, "signal SIGSEGV")
        wait_dead(worker)
        tests.supervisor.kill(worker.worker_id, "timeout", "after 3 s", dump=True)
        report = await tests.exited(worker)
        assert (report.reason, report.signal) == ("crash", "SIGSEGV")


@one_backend
async def test_an_exit_with_0_fits_the_resize_that_came_after_it() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tell(worker, "exit 0")
        wait_dead(worker)
        tests.supervisor.kill(worker.worker_id, "resized", "")
        report = await tests.exited(worker)
        assert (report.reason, report.exit_code) == ("resized", 0)


async def test_a_worker_that_seems_dead_is_waited_for_so_that_its_status_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(life, "DEATH_WAIT_S", 10.0)
    async with lab() as tests:
        worker = await tests.ready()
        tell(worker, "signal SIGKILL")
        tests.supervisor.kill(worker.worker_id, None, "its slot ended")
        report = await tests.exited(worker)
        assert (report.reason, report.detail) == ("crash", "killed by SIGKILL")


@one_backend
async def test_a_worker_that_only_seems_dead_is_killed() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tests.supervisor.kill(worker.worker_id, None, "its slot ended")
        report = await tests.exited(worker)
        assert (report.reason, report.detail, report.signal) == ("protocol_error", "its slot ended", "SIGKILL")


async def test_a_grandchild_that_ignores_sigterm_dies_with_a_worker_that_crashes() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        grandchild = int(await tests.order(worker, "grandchild"))
        tell(worker, "signal SIGSEGV")
        report = await tests.exited(worker)
        await dead(grandchild)
        assert report.reason == "crash"


@one_backend
async def test_the_peak_of_memory_is_the_workers_not_the_managers() -> None:
    mine = bytearray(b"x") * (64 * 2**20)
    async with lab(rss_interval_s=0.01) as tests:
        small, large = await tests.ready(), await tests.ready()
        assert await tests.order(large, "eat 300") == "ok"
        await tests.recorder.wait("rss", small.worker_id)
        number = len(tests.recorder.of("rss", large.worker_id)) + 2
        sampled = (await tests.recorder.wait("rss", large.worker_id, number)).value
        for worker in (small, large):
            tell(worker, "exit 0")
        peaks = [(await tests.exited(worker)).peak_rss_bytes for worker in (small, large)]
        assert 0 < (peaks[0] or 0) < len(mine)
        assert (peaks[1] or 0) > 300 * 2**20
        assert sampled > 300 * 2**20
        assert large.rss_bytes is not None


@one_backend
async def test_without_pidfds_a_thread_sees_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    async with lab() as tests:
        worker, other = await tests.ready(), await tests.ready()
        tell(worker, "exit 3")
        assert (await tests.exited(worker)).exit_code == 3
        tests.supervisor.stop(other.worker_id, "stopped", time.monotonic() + 10)
        assert (await tests.exited(other)).exit_code == 0
        killed = tests.start("boot_silent")
        tests.supervisor.kill(killed, "killed", "")
        assert (await tests.exited(killed)).reason == "killed"


@one_backend
async def test_a_start_whose_exit_cannot_be_watched_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    async with lab() as tests:
        report = await tests.exited(tests.start())
        assert (report.reason, report.pid) == ("boot_error", None)
        assert "no file descriptor left (Too many open files)" in report.detail


@one_backend
async def test_a_fault_in_one_workers_task_ends_that_worker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with lab() as tests:
        worker, other = await tests.ready(), await tests.ready()

        async def broken() -> None:
            raise RuntimeError("a bug of ours")

        worker._do(broken)
        report = await tests.exited(worker)
        assert (report.reason, report.detail) == ("protocol_error", "RuntimeError in the supervisor: a bug of ours")
        [unwell] = tests.recorder.of("unwell")
        assert (unwell.worker_id, unwell.value[0]) == (worker.worker_id, "protocol_error")
        assert await tests.order(other, "say stdout fine") == "ok"


@one_backend
async def test_whatever_fails_at_the_end_there_is_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **more: object) -> None:
        raise RuntimeError("a bug of ours")

    async with lab() as tests:
        worker, other = await tests.ready(), await tests.ready()
        with monkeypatch.context() as patched:
            patched.setattr(worker._control, "read_rest", broken)
            tell(worker, "exit 0")
            report = await tests.exited(worker)
        assert (report.reason, report.status_known) == ("exited", False)
        worker.never_lived()
        assert collect(report.pid or 0) == 0
        assert await tests.order(other, "say stdout fine") == "ok"
    assert len(tests.recorder.of("exited")) == 2


@one_backend
async def test_a_launcher_with_a_bug_gives_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(request: object) -> None:
        raise RuntimeError("a bug of ours")

    async with lab() as tests:
        monkeypatch.setattr(tests.supervisor._launcher, "_launch_now", broken)
        report = await tests.exited(tests.start())
        assert (report.reason, report.pid, report.detail) == ("boot_error", None, "RuntimeError: a bug of ours")
