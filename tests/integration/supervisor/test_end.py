"""The supervisor's own end: closed, cancelled, or short of everything; nothing is left, and everybody gets a report."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from dspool.options import WorkerGroup
from dspool.protocol.messages import BootConfig
from dspool.supervisor import boot, forked
from dspool.supervisor.control import ControlPipe
from dspool.supervisor.launch import Launcher, LaunchRequest, SpawnLauncher
from dspool.supervisor.life import Phase
from dspool.supervisor.process import UNKNOWN_STATUS, ExitStatus, Launched, ProcessHandle
from dspool.supervisor.supervisor import Supervisor
from tests.integration.supervisor.conftest import open_fds
from tests.integration.supervisor.harness import (
    BACKENDS,
    PATIENCE_S,
    ROOT,
    SCRIPTED_COMMAND,
    Lab,
    Recorder,
    boot_config,
    collect,
    lab,
    one_backend,
    options,
    tell,
)

multi_threaded_fork = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.slow]


async def every_phase(tests: Lab) -> dict[int, str]:
    """A worker in each phase, and the reason that its report is to have when the supervisor ends now."""
    expected = await every_later_phase(tests)
    expected[tests.start()] = "stopped"
    phases = [worker.phase for worker in tests.supervisor._workers.values()]
    assert phases == [Phase.STOPPING, Phase.DYING, Phase.READY, Phase.BOOTING, Phase.LAUNCHING]
    return expected


async def every_later_phase(tests: Lab) -> dict[int, str]:
    """The same, without one that is being launched."""
    supervisor = tests.supervisor
    stopping, dying, ready = [await tests.ready("ignore_shutdown") for _ in range(3)]
    booting = tests.start("boot_silent")
    while supervisor._workers[booting].phase is not Phase.BOOTING:
        await anyio.lowlevel.checkpoint()
    supervisor.stop(stopping.worker_id, "resized", time.monotonic() + 60)
    supervisor.kill(dying.worker_id, "timeout", "", dump=True)
    return {
        stopping.worker_id: "stopped",
        dying.worker_id: "timeout",
        ready.worker_id: "stopped",
        booting: "stopped",
    }


async def test_closing_ends_workers_in_every_phase() -> None:
    async with lab() as tests:
        expected = await every_phase(tests)
        at = time.monotonic()
        await tests.supervisor.aclose(at + 5)
        assert time.monotonic() - at < 2
        assert {event.worker_id: event.value.reason for event in tests.recorder.of("exited")} == expected
        assert all(event.value.status_known for event in tests.recorder.of("exited") if event.value.pid)
        await tests.supervisor.aclose(at)


async def test_cancelling_ends_workers_in_every_phase() -> None:
    recorder = Recorder()
    supervisor = Supervisor(options(), SpawnLauncher(SCRIPTED_COMMAND), recorder, boot_config)
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervisor.run)
        expected = await every_phase(Lab(supervisor, recorder))
        tasks.cancel_scope.cancel()
    assert {event.worker_id: event.value.reason for event in recorder.of("exited")} == expected
    assert not supervisor._workers


@pytest.mark.parametrize("anyio_backend", [BACKENDS["asyncio"], BACKENDS["uvloop"]], ids=["asyncio", "uvloop"])
async def test_cancelling_its_asyncio_task_ends_workers_in_every_phase() -> None:
    recorder = Recorder()
    supervisor = Supervisor(options(), SpawnLauncher(SCRIPTED_COMMAND), recorder, boot_config)
    task = asyncio.create_task(supervisor.run())
    await anyio.wait_all_tasks_blocked()
    expected = await every_phase(Lab(supervisor, recorder))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {event.worker_id: event.value.reason for event in recorder.of("exited")} == expected


def test_the_end_of_asyncio_run_ends_workers_in_every_phase() -> None:
    recorder = Recorder()
    expected = {}
    keep = []

    async def main() -> None:
        supervisor = Supervisor(options(), SpawnLauncher(SCRIPTED_COMMAND), recorder, boot_config)
        keep.append(asyncio.create_task(supervisor.run()))
        await anyio.wait_all_tasks_blocked()
        expected.update(await every_later_phase(Lab(supervisor, recorder)))

    # It cancels each task there is, the workers' own too.
    asyncio.run(main())
    assert {event.worker_id for event in recorder.of("exited")} == set(expected)
    assert len(recorder.of("exited")) == len(expected)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@one_backend
async def test_a_worker_whose_task_asyncio_cancels_before_its_first_step_is_reported() -> None:
    async with lab() as tests:
        others = asyncio.all_tasks()
        worker_id = tests.start()
        [task] = asyncio.all_tasks() - others
        task.cancel()
        await tests.supervisor.aclose(time.monotonic() + 0.1)
    [event] = tests.recorder.of("exited", worker_id)
    assert (event.value.reason, event.value.pid) == ("stopped", None)


class Immortal:
    """What a launcher hands over for a process that nothing kills."""

    pid: int | None = None
    start_method: str = "immortal"
    dump_fd: int | None = None

    def __init__(self) -> None:
        self.exit_fd, self.exit_end = os.pipe()
        self.lifeline_end, self.lifeline_fd = os.pipe()
        self.control, self.peer = socket.socketpair()
        self.control.setblocking(False)
        self.slots: list[socket.socket] = []
        self.output_fds: dict[str, int] = {}
        self.signals: list[int] = []
        self.reaped = False

    def send_signal(self, signum: int) -> None:
        self.signals.append(signum)

    async def settle(self) -> None: ...

    def reap(self) -> ExitStatus:
        self.reaped = True
        return UNKNOWN_STATUS

    def close(self) -> None:
        os.close(self.exit_end)
        os.close(self.lifeline_end)
        self.peer.close()


class ImmortalLauncher(Launcher):
    start_method: str = "immortal"

    def __init__(self) -> None:
        self.launched: list[Immortal] = []

    async def launch(self, request: LaunchRequest) -> Launched:
        self.launched.append(Immortal())
        return self.launched[-1]

    async def aclose(self, deadline: float) -> None:
        for one in self.launched:
            one.close()


async def test_a_process_that_nothing_kills_is_given_up_at_the_deadline() -> None:
    launcher = ImmortalLauncher()
    async with lab(launcher) as tests:
        worker_id = tests.start()
        await anyio.wait_all_tasks_blocked()
        at = time.monotonic()
        await tests.supervisor.aclose(at + 0.2)
        assert 0.2 <= time.monotonic() - at < 2
        [report] = [event.value for event in tests.recorder.of("exited", worker_id)]
        assert (report.reason, report.status_known) == ("stopped", False)
        assert signal.SIGKILL in launcher.launched[0].signals
        assert not launcher.launched[0].reaped


@contextmanager
def free_descriptors(number: int) -> Iterator[None]:
    """This process can open `number` more file descriptors, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = set(open_fds())
    limit = next(limit for limit in range(soft) if limit - len([fd for fd in used if fd < limit]) == number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@one_backend
async def test_running_out_of_descriptors_anywhere_in_a_start_leaks_none() -> None:
    async with lab(slots=2) as tests:
        await tests.ready()
        before = open_fds()
        failed = 0
        for number in range(1, 20):
            with free_descriptors(number):
                worker_id = tests.start("boot_exit")
                report = await tests.exited(worker_id)
            assert report.reason == "boot_error"
            if report.pid is None:
                failed += 1
                assert report.detail.startswith("no file descriptor left (Too many open files): a worker with slots=2")
            assert open_fds() == before
        assert 14 <= failed < 19
        await tests.ready()


@one_backend
async def test_a_hundred_starts_and_ends_leave_nothing() -> None:
    async with lab() as tests:
        await tests.exited(tests.start("boot_exit"))
        fds = len(open_fds())

        async def one(number: int) -> None:
            if number % 4 == 0:
                worker = await tests.ready()
                tests.supervisor.stop(worker.worker_id, "recycle_age", time.monotonic() + 10)
                await tests.exited(worker)
            elif number % 4 == 1:
                worker = await tests.ready()
                tests.supervisor.kill(worker.worker_id, "timeout", "", dump=True)
                await tests.exited(worker)
            else:
                worker_id = tests.start("boot_silent")
                await anyio.sleep(0.001 * number)
                tests.supervisor.kill(worker_id, "start_timeout", "", dump=number % 4 == 2)
                await tests.exited(worker_id)

        for start in range(0, 100, 10):
            async with anyio.create_task_group() as tasks:
                for number in range(start, start + 10):
                    tasks.start_soon(one, number)
        reasons = [event.value.reason for event in tests.recorder.of("exited")]
        assert sorted(reasons) == sorted(
            ["boot_error"] + ["recycle_age"] * 25 + ["timeout"] * 25 + ["start_timeout"] * 50
        )
        assert len(open_fds()) == fds


async def test_a_worker_outlives_the_thread_that_started_it() -> None:
    request = LaunchRequest(worker_id=1, pool="p", slots=1, python=options().executable, env={"PYTHONPATH": str(ROOT)})
    launched: list[Launched] = []

    def start() -> None:
        async def launch() -> None:
            launched.append(await SpawnLauncher(SCRIPTED_COMMAND).launch(request))

        anyio.run(launch)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    [child] = launched
    handle, control = ProcessHandle(child), ControlPipe(child.control, 2**20)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(control.read)
        config = BootConfig(worker_id=1, pool="p")
        with anyio.fail_after(PATIENCE_S):
            assert (await control.ask("ping", boot.handshake_args(config)).answer()).success
            assert (await control.ask("ping", {}).answer()).success
        tasks.cancel_scope.cancel()
    assert handle.end_now()
    control.close()
    assert child.reap().signal == signal.SIGKILL
    handle.close(slots=True)


@multi_threaded_fork
@one_backend
async def test_a_forked_process_closes_every_end_and_the_manager_goes_on() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        ours = {worker._handle.exit_fd, worker._control._socket.fileno(), worker.slots[0].fileno()}
        ours |= set(forked._fds)
        pid = os.fork()
        if pid == 0:
            left = ours & set(open_fds())
            os._exit(len(left))
        assert collect(pid) == 0
        assert await tests.order(worker, "say stdout fine") == "ok"
        tell(worker, "exit 0")
        assert (await tests.exited(worker)).exit_code == 0


@multi_threaded_fork
@one_backend
async def test_a_launch_in_progress_holds_a_fork_back() -> None:
    done = threading.Event()
    children: list[int] = []

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        children.append(pid)
        done.set()

    with forked.creating():
        thread = threading.Thread(target=fork)
        thread.start()
        assert not done.wait(0.05)
    thread.join()
    assert collect(children[0]) == 0


async def test_the_group_of_a_worker_says_its_environment() -> None:
    async with lab(env={"FROM_POOL": "pool"}) as tests:
        tests.supervisor.start(77, WorkerGroup(name="g", workers=1, env={"FROM_GROUP": "group"}))
        worker = (await tests.recorder.wait("ready", 77)).value
        assert await tests.order(worker, "env FROM_POOL") == "pool"
        assert await tests.order(worker, "env FROM_GROUP") == "group"
        assert await tests.order(worker, "env LITELLM_LOCAL_MODEL_COST_MAP") == "true"
