"""The supervisor with real workers: both sides keep to the same contract."""

from __future__ import annotations

import time

import pytest

from dspool.protocol.messages import BootConfig
from dspool.supervisor.launch import SpawnLauncher
from tests.integration.supervisor.harness import lab

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.slow]


async def test_a_real_worker_becomes_ready_answers_pings_and_stops() -> None:
    async with lab(SpawnLauncher(), slots=2) as tests:
        worker = await tests.ready()
        assert worker.python_version
        tests.supervisor.probe(worker.worker_id)
        assert (await tests.recorder.wait("probe", worker.worker_id)).value is True
        tests.supervisor.stop(worker.worker_id, "stopped", time.monotonic() + 30)
        report = await tests.exited(worker)
        assert (report.reason, report.exit_code, report.output_tail) == ("stopped", 0, "")


@pytest.mark.usefixtures("patient_dump")
async def test_a_real_worker_is_killed_with_its_stacks() -> None:
    async with lab(SpawnLauncher()) as tests:
        worker = await tests.ready()
        tests.supervisor.kill(worker.worker_id, "timeout", "after 3 s", dump=True)
        report = await tests.exited(worker)
        assert (report.reason, report.detail, report.signal) == ("timeout", "after 3 s", "SIGKILL")
        assert "most recent call first" in report.stack_dump


async def test_a_real_worker_that_cannot_boot_says_why() -> None:
    def missing(worker_id: int, group: str) -> BootConfig:
        return BootConfig(worker_id=worker_id, pool="lab", preload=["no_such_module"])

    async with lab(SpawnLauncher()) as tests:
        tests.supervisor._boot_config = missing
        at = time.monotonic()
        report = await tests.exited(tests.start())
        assert (report.reason, report.exit_code) == ("boot_error", 77)
        assert report.detail == "ModuleNotFoundError: No module named 'no_such_module'"
        assert "no_such_module" in report.remote_traceback
        assert time.monotonic() - at < 20
