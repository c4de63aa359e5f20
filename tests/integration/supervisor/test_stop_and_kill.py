"""Ending workers: the stop ladder, rung by rung, and the kill that nothing survives."""

from __future__ import annotations

import os
import time

import anyio
import pytest

from dspool.protocol.limits import DUMP_SIGNAL
from dspool.supervisor import life
from dspool.types import ExitReason
from tests.integration.supervisor.harness import dead, freeze, lab, line, one_backend, tell

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.slow]


async def test_a_worker_that_obeys_shutdown_is_stopped_at_once() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        at = time.monotonic()
        tests.supervisor.stop(worker.worker_id, "recycle_age", at + 30)
        report = await tests.exited(worker)
        assert (report.reason, report.exit_code, report.signal) == ("recycle_age", 0, None)
        assert time.monotonic() - at < 5


@pytest.mark.parametrize(
    ("script", "exit_code", "signal_name", "earliest", "latest"),
    [
        ("ignore_shutdown", 0, None, 0.6, 0.8),
        ("ignore_shutdown ignore_eof", None, "SIGTERM", 0.8, 1.0),
        ("ignore_shutdown ignore_eof ignore_sigterm", None, "SIGKILL", 1.0, 1.5),
    ],
    ids=["EOF", "SIGTERM", "kill"],
)
@one_backend
async def test_each_rung_of_the_ladder_has_its_time(
    script: str, exit_code: int | None, signal_name: str | None, earliest: float, latest: float
) -> None:
    grace_s = 0.5
    async with lab() as tests:
        worker = await tests.ready(script)
        at = time.monotonic()
        tests.supervisor.stop(worker.worker_id, "stopped", at + grace_s)
        tests.supervisor.stop(worker.worker_id, "resized", at)
        report = await tests.exited(worker)
        took = time.monotonic() - at
        assert (report.reason, report.exit_code, report.signal) == ("stopped", exit_code, signal_name)
        assert earliest * grace_s <= took < latest * grace_s + 1.0
        assert not tests.recorder.of("unwell")


async def test_a_stop_whose_deadline_is_past_kills() -> None:
    async with lab() as tests:
        worker = await tests.ready("ignore_shutdown ignore_eof ignore_sigterm")
        tests.supervisor.stop(worker.worker_id, "stopped", time.monotonic() - 1)
        assert (await tests.exited(worker)).signal == "SIGKILL"


@one_backend
async def test_a_kill_overtakes_a_stop() -> None:
    async with lab() as tests:
        worker = await tests.ready("ignore_shutdown")
        tests.supervisor.stop(worker.worker_id, "resized", time.monotonic() + 60)
        tests.supervisor.kill(worker.worker_id, "killed", "by hand")
        report = await tests.exited(worker)
        assert (report.reason, report.detail, report.signal) == ("killed", "by hand", "SIGKILL")


@one_backend
async def test_a_stopping_worker_that_seems_dead_is_left_to_its_ladder() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tests.supervisor.stop(worker.worker_id, "resized", time.monotonic() + 60)
        tests.supervisor.kill(worker.worker_id, None, "its slot ended")
        report = await tests.exited(worker)
        assert (report.reason, report.exit_code) == ("resized", 0)


@one_backend
async def test_a_worker_that_crashes_while_it_stops_has_crashed() -> None:
    async with lab() as tests:
        worker = await tests.ready("ignore_shutdown")
        tests.supervisor.stop(worker.worker_id, "resized", time.monotonic() + 60)
        tell(worker, "signal SIGSEGV")
        report = await tests.exited(worker)
        assert (report.reason, report.signal) == ("crash", "SIGSEGV")


@one_backend
async def test_a_booting_worker_is_stopped_by_a_kill() -> None:
    async with lab() as tests:
        worker_id = tests.start("boot_silent")
        tests.supervisor.stop(worker_id, "resized", time.monotonic() + 60)
        booting = tests.start("boot_silent")
        while tests.supervisor._workers[booting].phase is not life.Phase.BOOTING:
            await anyio.lowlevel.checkpoint()
        tests.supervisor.stop(booting, "resized", time.monotonic() + 60)
        reports = [await tests.exited(worker_id), await tests.exited(booting)]
        assert [report.reason for report in reports] == ["resized", "resized"]
        assert reports[0].pid is None


async def test_a_kill_takes_milliseconds() -> None:
    async with lab() as tests:
        for _ in range(3):
            worker = await tests.ready("ignore_sigterm")
            at = time.monotonic()
            tests.supervisor.kill(worker.worker_id, "removed", "verdict")
            report = await tests.exited(worker)
            took = tests.recorder.of("exited", worker.worker_id)[0].at - at
            assert (report.reason, report.detail, report.signal) == ("removed", "verdict", "SIGKILL")
            assert took < life.LIFELINE_WAIT_S  # the kernel's doing, not the SIGKILL after it


@pytest.mark.usefixtures("patient_dump")
@pytest.mark.parametrize(
    ("order", "answer", "frame"),
    [("spin", "spinning", " in do_spin"), ("hold_gil", "holding", " in do_hold_gil")],
    ids=["python", "C holding the GIL"],
)
async def test_a_kill_with_dump_says_where_the_worker_was(order: str, answer: str, frame: str) -> None:
    async with lab() as tests:
        worker = await tests.ready()
        assert await tests.order(worker, order) == answer
        tests.supervisor.kill(worker.worker_id, "timeout", "after 3 s", dump=True)
        report = await tests.exited(worker)
        assert (report.reason, report.detail, report.signal) == ("timeout", "after 3 s", "SIGKILL")
        assert frame in report.stack_dump
        assert " in serve_control" in report.stack_dump


@one_backend
async def test_a_stopped_process_is_killed_without_a_dump_and_the_report_says_so() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        freeze(worker)
        tests.supervisor.kill(worker.worker_id, "hung", "3 pings missed", dump=True)
        report = await tests.exited(worker)
        assert (report.reason, report.signal, report.stack_dump) == ("hung", "SIGKILL", "")
        assert report.detail == "3 pings missed; no stack dump: none was written within 10 ms"


@one_backend
async def test_a_dump_that_is_cut_off_is_kept_and_the_report_says_so() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        freeze(worker)
        handle = worker._handle
        assert handle.launched.dump_fd is not None
        send, written = handle.send_signal, b'Thread 0x1 (most recent call first):\n  File "lo'

        def write_a_part(signum: int) -> None:
            if signum == DUMP_SIGNAL:
                assert handle.launched.dump_fd is not None
                os.pwrite(handle.launched.dump_fd, written, 0)
            send(signum)

        handle.send_signal = write_a_part  # type: ignore[method-assign]
        tests.supervisor.kill(worker.worker_id, "hung", "3 pings missed", dump=True)
        report = await tests.exited(worker)
        assert report.stack_dump == written.decode()
        assert report.detail == "3 pings missed; part of a stack dump: no more was written within 10 ms"


@one_backend
async def test_a_second_kill_does_not_wait_for_the_firsts_dump_and_keeps_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(life, "DUMP_WAIT_S", 30.0)
    async with lab() as tests:
        worker = await tests.ready()
        freeze(worker)
        tests.supervisor.kill(worker.worker_id, "timeout", "first", dump=True)
        tests.supervisor.kill(worker.worker_id, "hung", "second", dump=True)
        tests.supervisor.kill(worker.worker_id, None, "third")
        tests.supervisor.stop(worker.worker_id, "stopped", 0.0)
        tests.supervisor.kill(worker.worker_id, "killed", "fourth")
        report = await tests.exited(worker)
        assert (report.reason, report.detail.split(";")[0]) == ("timeout", "first")


@pytest.mark.parametrize("reason", ["removed", "timeout"])
async def test_a_grandchild_that_ignores_sigterm_dies_with_the_group(reason: ExitReason) -> None:
    async with lab() as tests:
        worker = await tests.ready()
        grandchild = int(await tests.order(worker, "grandchild"))
        tests.supervisor.kill(worker.worker_id, reason, "", dump=reason == "timeout")
        assert (await tests.exited(worker)).reason == reason
        await dead(grandchild)


@one_backend
async def test_a_grandchild_dies_with_a_worker_that_stops_well() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        grandchild = int(await tests.order(worker, "grandchild"))
        tests.supervisor.stop(worker.worker_id, "stopped", time.monotonic() + 30)
        assert (await tests.exited(worker)).exit_code == 0
        await dead(grandchild)


@one_backend
async def test_a_worker_that_escaped_its_lifeline_is_killed_all_the_same() -> None:
    async with lab() as tests:
        worker = await tests.ready("unarmed")
        at = time.monotonic()
        tests.supervisor.kill(worker.worker_id, "killed", "by hand")
        report = await tests.exited(worker)
        assert (report.reason, report.signal) == ("killed", "SIGKILL")
        assert life.LIFELINE_WAIT_S <= time.monotonic() - at < life.LIFELINE_WAIT_S + 2


@one_backend
async def test_orders_for_unknown_and_gone_workers_do_nothing() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tests.supervisor.kill(worker.worker_id, "killed", "")
        await tests.exited(worker)
        for worker_id in (worker.worker_id, 999):
            tests.supervisor.kill(worker_id, "killed", "")
            tests.supervisor.kill(worker_id, None, "", dump=True)
            tests.supervisor.stop(worker_id, "stopped", 0.0)
            tests.supervisor.probe(worker_id)
    assert len(tests.recorder.of("exited")) == 1


@one_backend
async def test_the_slots_belong_to_the_listener_after_the_exit() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tests.recorder.workers.pop(worker.worker_id)
        assert await tests.order(worker, "say stdout x") == "ok"
        tell(worker, "spin")
        assert await line(worker.slots[0]) == "spinning"
        tests.supervisor.kill(worker.worker_id, "killed", "")
        await tests.exited(worker)
        assert worker.slots[0].recv(1) == b""
        worker.slots[0].close()
