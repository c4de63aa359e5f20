"""Starting workers: ready, or why not, at once."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from dspool.errors import EncodeError, WorkerStartError
from dspool.options import WorkerGroup
from dspool.protocol.messages import BootConfig
from dspool.supervisor.launch import Launcher, LaunchRequest, SpawnLauncher, worker_environment
from dspool.supervisor.life import Phase
from dspool.supervisor.process import Launched
from dspool.supervisor.supervisor import Supervisor
from tests.integration.supervisor.harness import Recorder, lab, line, one_backend, options, tell

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@pytest.mark.slow
async def test_a_worker_becomes_ready_and_its_slots_are_handed_over() -> None:
    async with lab(slots=3) as tests:
        worker = await tests.ready()
        assert worker.pid is not None
        assert worker.ready_at is not None
        assert (worker.start_method, worker.python_version, len(worker.slots)) == ("spawn", "3.x", 3)
        assert all(not slot.get_inheritable() and not slot.getblocking() for slot in worker.slots)
        assert await tests.order(worker, "say stdout hello") == "ok"
    report = await tests.exited(worker)
    assert (report.reason, report.signal, report.exit_code) == ("stopped", "SIGKILL", None)
    assert (report.pid, report.status_known, report.output_tail) == (worker.pid, True, "hello\n")
    assert 0 < report.age_s < 60


@pytest.mark.slow
async def test_a_boot_error_comes_with_its_traceback_at_once() -> None:
    async with lab() as tests:
        report = await tests.exited(tests.start("boot_error"))
        assert (report.reason, report.detail) == ("boot_error", "ImportError: no such module")
        assert report.remote_traceback == "Traceback: here it was"
        assert (report.exit_code, report.signal) == (77, None)
        assert report.pid is not None
        assert not tests.recorder.of("ready")


@pytest.mark.slow
@one_backend
async def test_a_worker_that_says_it_cannot_boot_and_stays_is_killed() -> None:
    async with lab() as tests:
        report = await tests.exited(tests.start("boot_error lingers"))
        assert (report.reason, report.signal) == ("boot_error", "SIGKILL")
        assert report.remote_traceback == "Traceback: here it was"


@pytest.mark.slow
@one_backend
@pytest.mark.parametrize(
    ("script", "exit_code", "signal", "detail"),
    [
        ("boot_exit", 3, None, "exit code 3 before it was ready: cannot go on"),
        ("boot_crash", None, "SIGSEGV", "killed by SIGSEGV before it was ready"),
    ],
)
async def test_an_exit_while_booting_is_a_boot_error(
    script: str, exit_code: int | None, signal: str | None, detail: str
) -> None:
    async with lab() as tests:
        report = await tests.exited(tests.start(script))
        assert report.reason == "boot_error"
        assert (report.exit_code, report.signal) == (exit_code, signal)
        assert report.detail.startswith(detail)


@pytest.mark.slow
@one_backend
async def test_a_worker_that_crashes_while_booting_leaves_its_stacks() -> None:
    async with lab() as tests:
        report = await tests.exited(tests.start("boot_crash"))
        assert "Fatal Python error: Segmentation fault" in report.stack_dump
        assert " in boot" in report.stack_dump


@one_backend
async def test_a_python_without_dspool_says_so() -> None:
    launcher = SpawnLauncher(("-P", "-m", "no_such_module"))
    async with lab(launcher) as tests:
        report = await tests.exited(tests.start())
        assert (report.reason, report.exit_code) == ("boot_error", 1)
        assert report.detail.endswith("No module named no_such_module")
        assert "No module named no_such_module" in report.output_tail


@pytest.mark.slow
@one_backend
@pytest.mark.parametrize(
    ("script", "detail"),
    [
        ("boot_version", "the worker speaks protocol version 99, its manager 1"),
        ("boot_garbage", "control pipe: not a response"),
    ],
)
async def test_an_answer_that_is_not_ours_is_a_boot_error(script: str, detail: str) -> None:
    async with lab() as tests:
        report = await tests.exited(tests.start(script))
        assert report.reason == "boot_error"
        assert report.detail.startswith(detail)
        assert not tests.recorder.of("unwell")


async def test_a_missing_interpreter_is_named() -> None:
    async with lab(python="/nowhere/python") as tests:
        report = await tests.exited(tests.start())
        assert (report.reason, report.pid) == ("boot_error", None)
        assert report.detail == "Python executable not found: /nowhere/python"
        assert not report.status_known


async def test_an_interpreter_that_is_no_program_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    async with lab(python=python) as tests:
        report = await tests.exited(tests.start())
        assert (report.reason, report.pid) == ("boot_error", None)
        assert report.detail == f"Python executable can't be run: {python} (Permission denied)"


@pytest.mark.slow
@pytest.mark.usefixtures("patient_dump")
@one_backend
async def test_a_worker_that_never_answers_is_killed_when_the_core_says_so() -> None:
    async with lab() as tests:
        worker_id = tests.start("boot_silent")
        tests.supervisor.probe(worker_id)
        worker = tests.supervisor._workers[worker_id]
        while worker.phase is not Phase.BOOTING:
            await anyio.lowlevel.checkpoint()
        assert await line(worker.slots[0]) == "booting"
        tests.supervisor.kill(worker_id, "start_timeout", "not ready within 60 s", dump=True)
        report = await tests.exited(worker_id)
        assert (report.reason, report.detail, report.signal) == ("start_timeout", "not ready within 60 s", "SIGKILL")
        assert "time.sleep(600)" in report.stack_dump or " in boot" in report.stack_dump


@pytest.mark.slow
async def test_a_worker_killed_before_it_could_arm_its_lifeline_dies_all_the_same() -> None:
    async with lab() as tests:
        worker_id = tests.start("boot_silent unarmed")
        while tests.supervisor._workers[worker_id].phase is not Phase.BOOTING:
            await anyio.lowlevel.checkpoint()
        at = time.monotonic()
        tests.supervisor.kill(worker_id, "killed", "by hand")
        report = await tests.exited(worker_id)
        assert (report.reason, report.detail) == ("killed", "by hand")
        assert time.monotonic() - at < 0.5


async def test_a_worker_killed_in_the_step_that_started_it_is_never_launched() -> None:
    async with lab() as tests:
        worker_id = tests.start()
        tests.supervisor.kill(worker_id, "resized", "")
        report = await tests.exited(worker_id)
        assert (report.reason, report.pid) == ("resized", None)


async def test_a_kill_ends_a_launch_that_hangs() -> None:
    class HangingLauncher(Launcher):
        start_method: str = "hanging"
        entered = anyio.Event()

        async def launch(self, request: LaunchRequest) -> Launched:
            self.entered.set()
            await anyio.sleep_forever()
            raise AssertionError

    launcher = HangingLauncher()
    async with lab(launcher) as tests:
        worker_id = tests.start()
        launcher.entered = anyio.Event()
        await launcher.entered.wait()
        tests.supervisor.kill(worker_id, "start_timeout", "too slow", dump=True)
        tests.supervisor.kill(worker_id, "killed", "second")
        tests.supervisor.stop(worker_id, "stopped", 0.0)
        report = await tests.exited(worker_id)
        assert (report.reason, report.detail, report.pid) == ("start_timeout", "too slow", None)


@pytest.mark.parametrize("error", [WorkerStartError("no room", None, "far away"), EncodeError("no form")])
async def test_a_configuration_that_cannot_be_made_is_a_boot_error(error: Exception) -> None:
    def failing(worker_id: int, group: str) -> BootConfig:
        raise error

    recorder = Recorder()
    supervisor = Supervisor(options(), SpawnLauncher(), recorder, failing)
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervisor.run)
        supervisor.start(7, WorkerGroup(name="g", workers=1))
        report = (await recorder.wait("exited", 7)).value
        await supervisor.aclose(time.monotonic() + 1)
    assert (report.reason, report.pid, report.detail) == ("boot_error", None, str(error))
    assert report.remote_traceback == ("far away" if isinstance(error, WorkerStartError) else "")


@pytest.mark.slow
@one_backend
async def test_a_configuration_over_the_frame_cap_is_a_boot_error() -> None:
    def large(worker_id: int, group: str) -> BootConfig:
        return BootConfig(worker_id=worker_id, pool="p", sys_path=["x" * 5000])

    recorder = Recorder()
    async with lab() as tests:
        tests.supervisor._options = options(max_frame_bytes=1024)
        tests.supervisor._boot_config = large
        tests.supervisor._listener = recorder
        worker_id = tests.start()
        report = (await recorder.wait("exited", worker_id)).value
        assert report.reason == "boot_error"
        assert report.detail.startswith("its configuration can't be sent: a message of 5,")


@pytest.mark.slow
async def test_a_handshake_larger_than_the_pipe_arrives() -> None:
    def large(worker_id: int, group: str) -> BootConfig:
        return BootConfig(worker_id=worker_id, pool="p", sys_path=["x" * 5_000_000])

    async with lab() as tests:
        tests.supervisor._boot_config = large
        await tests.ready()


@pytest.mark.slow
@one_backend
async def test_a_worker_is_its_own_session_with_nothing_of_ours_open() -> None:
    async with lab(slots=2) as tests:
        first, second = await tests.ready(), await tests.ready()
        tell(second, "describe")
        session, group, fds = (await line(second.slots[0])).split(" ", 2)
        assert session == group == str(second.pid)
        # 0, 1, 2, control, lifeline, dump, two slots; nothing of the first worker's, no manager's end.
        assert len(fds.split()) == 8, fds
        assert first.pid != second.pid


def test_a_worker_gets_the_managers_environment_and_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_MANAGER", "1")
    monkeypatch.setenv("REMOVED", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.delenv("LITELLM_LOCAL_MODEL_COST_MAP", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    env = worker_environment({"A": "pool", "B": "pool", "REMOVED": None}, {"B": "group", "OPENBLAS_NUM_THREADS": None})
    assert (env["FROM_MANAGER"], env["A"], env["B"]) == ("1", "pool", "group")
    assert (env["LITELLM_LOCAL_MODEL_COST_MAP"], env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("true", "1", "7")
    assert {"REMOVED", "OPENBLAS_NUM_THREADS"}.isdisjoint(env)


def test_a_launch_request_does_not_show_its_environment() -> None:
    request = LaunchRequest(worker_id=1, pool="p", slots=1, python="python", env={"KEY": "canary"})
    assert "canary" not in repr(request)


async def test_starts_after_the_close_are_reported_at_once() -> None:
    async with lab() as tests:
        pass
    worker_id = tests.start()
    [event] = tests.recorder.of("exited", worker_id)
    assert (event.value.reason, event.value.pid) == ("stopped", None)
    tests.supervisor.kill(worker_id, "killed", "")
    tests.supervisor.stop(worker_id, "stopped", 0.0)
    tests.supervisor.probe(worker_id)
    await tests.supervisor.aclose(0.0)


@one_backend
async def test_an_id_is_started_once() -> None:
    async with lab(python="/nowhere/python") as tests:
        group = WorkerGroup(name="g", workers=1)
        tests.supervisor.start(5, group)
        with pytest.raises(ValueError, match="worker 5 was started before"):
            tests.supervisor.start(5, group)
        await tests.exited(5)
