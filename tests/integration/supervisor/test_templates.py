"""Start method "template" under the supervisor, on every loop: launches, deaths, closes, and what is left: nothing."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from dspool.errors import ProtocolError
from dspool.protocol.records import Exited, Fork, Forked, Prepare, Prepared, Record, Refused, send_record
from dspool.supervisor import forked, life
from dspool.supervisor.forked_child import AskedFork
from dspool.supervisor.launch import LaunchRequest
from dspool.supervisor.life import WorkerProcess
from dspool.supervisor.template import Template, TemplateGone
from dspool.supervisor.templates import TemplateLauncher
from tests.integration.supervisor.conftest import open_fds
from tests.integration.supervisor.harness import PATIENCE_S, ROOT, Lab, Recorder, dead, lab, one_backend

pytestmark = [
    pytest.mark.integration,
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="templates are for Linux"),
]


def launcher() -> TemplateLauncher:
    return TemplateLauncher(needs_dspy=lambda: False, start_timeout_s=PATIENCE_S)


def preload(folder: Path, source: str) -> dict[str, Any]:
    """Options of a lab whose workers need a module of this source."""
    (folder / "preloaded.py").write_text(source)
    return {
        "preload": "preloaded",
        "env": {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "PYTHONDONTWRITEBYTECODE": "1"},
    }


def template_of(worker: WorkerProcess) -> int:
    assert worker.pid is not None
    return psutil.Process(worker.pid).ppid()


async def test_a_forked_worker_becomes_ready_answers_pings_and_stops() -> None:
    async with lab(launcher(), slots=2) as tests:
        worker = await tests.ready()
        assert (worker.start_method, len(worker.slots)) == ("template", 2)
        assert template_of(worker) != os.getpid()
        assert all(not slot.get_inheritable() and not slot.getblocking() for slot in worker.slots)
        tests.supervisor.probe(worker.worker_id)
        assert (await tests.recorder.wait("probe", worker.worker_id)).value is True
        assert worker.sample_rss() is not None
        tests.supervisor.stop(worker.worker_id, "stopped", time.monotonic() + 30)
        report = await tests.exited(worker)
        assert (report.reason, report.exit_code, report.status_known) == ("stopped", 0, True)
        assert (report.start_method, report.output_tail) == ("template", "")


@pytest.mark.usefixtures("patient_dump")
async def test_a_forked_worker_is_killed_with_its_stacks_and_its_status_is_known() -> None:
    async with lab(launcher()) as tests:
        worker = await tests.ready()
        tests.supervisor.kill(worker.worker_id, "timeout", "after 3 s", dump=True)
        report = await tests.exited(worker)
        assert (report.reason, report.status_known) == ("timeout", True)
        fell = "; killed by SIGSEGV as its stacks were dumped"  # rarely, by CPython's fault: see exits.py
        assert (report.detail, report.signal) in [("after 3 s", "SIGKILL"), (f"after 3 s{fell}", "SIGSEGV")]
        assert "most recent call first" in report.stack_dump


@pytest.fixture
def patient_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template's word is waited for, however busy the machine is: in 50 ms it may not have its turn."""
    monkeypatch.setattr(life, "STATUS_WAIT_S", PATIENCE_S)


@pytest.mark.usefixtures("patient_status")
async def test_many_launches_share_one_template_and_none_is_left() -> None:
    async with lab(launcher()) as tests:
        ids = [tests.start() for _ in range(12)]
        workers = [(await tests.recorder.wait("ready", worker_id)).value for worker_id in ids]
        [template] = {template_of(worker) for worker in workers}
        for worker in workers[::2]:
            os.kill(worker.pid, signal.SIGKILL)
        for worker in workers[::2]:
            report = await tests.exited(worker)
            assert (report.reason, report.signal) == ("crash", "SIGKILL")
        assert {child.pid for child in psutil.Process(template).children()} == {each.pid for each in workers[1::2]}
    await dead(template)


async def test_the_workers_of_a_template_that_died_are_due_and_the_next_ones_have_another() -> None:
    async with lab(launcher()) as tests:
        workers = [await tests.ready() for _ in range(2)]
        os.kill(template_of(workers[0]), signal.SIGKILL)
        for worker in workers:
            await tests.recorder.wait("due", worker.worker_id)
            tests.supervisor.probe(worker.worker_id)
            assert (await tests.recorder.wait("probe", worker.worker_id)).value is True
        third = await tests.ready()
        assert template_of(third) not in {template_of(worker) for worker in workers}
        assert workers[0].pid is not None
        os.kill(workers[0].pid, signal.SIGSEGV)
        report = await tests.exited(workers[0])
        assert (report.status_known, report.exit_code, report.signal) == (False, None, None)
        assert len(tests.recorder.of("due")) == 2


@one_backend
async def test_a_template_that_hangs_is_killed_and_the_launch_goes_on_with_another() -> None:
    async with lab(TemplateLauncher(needs_dspy=lambda: False, start_timeout_s=5.0)) as tests:
        first = await tests.ready()
        os.kill(template_of(first), signal.SIGSTOP)
        second = await tests.ready()
        assert template_of(second) != template_of(first)
        await tests.recorder.wait("due", first.worker_id)


async def test_a_launch_that_is_given_up_while_its_template_starts_leaves_nothing(tmp_path: Path) -> None:
    hang = "import time\ntime.sleep(600)\n"
    async with lab(launcher(), **preload(tmp_path, hang)) as tests:
        first, second = tests.start(), tests.start()
        await anyio.wait_all_tasks_blocked()
        tests.supervisor.kill(first, "start_timeout", "too slow", dump=True)
        report = await tests.exited(first)
        assert (report.reason, report.pid) == ("start_timeout", None)
        assert not tests.recorder.of("exited", second)
    assert (await tests.exited(second)).reason == "stopped"


async def test_a_launch_that_is_given_up_as_its_worker_is_forked_costs_that_worker() -> None:
    forking = launcher()
    async with lab(forking) as tests:
        worker = await tests.ready()
        template = psutil.Process(template_of(worker))
        [kind] = forking._kinds.values()
        assert kind.template is not None
        given_up = [tests.start() for _ in range(8)]
        with anyio.fail_after(PATIENCE_S):
            while len(kind.template._asked) == 1:
                await anyio.lowlevel.checkpoint()
        for worker_id in given_up:
            tests.supervisor.kill(worker_id, "resized", "")
        for worker_id in given_up:
            assert (await tests.exited(worker_id)).reason == "resized"
        last = await tests.ready()
        for child in {child.pid for child in template.children()} - {worker.pid, last.pid}:
            await dead(child)


@pytest.mark.parametrize("module", ["raise LookupError('no luck')", "import os\nos._exit(3)"], ids=["error", "exit"])
async def test_a_template_that_cannot_start_fails_every_launch_that_waits(tmp_path: Path, module: str) -> None:
    async with lab(launcher(), **preload(tmp_path, module)) as tests:
        for worker_id in [tests.start() for _ in range(3)]:
            report = await tests.exited(worker_id)
            assert (report.reason, report.pid) == ("boot_error", None)
            assert "no luck" in report.remote_traceback if "luck" in module else "exit code 3" in report.detail


@pytest.mark.parametrize("killed", [2, 3])
async def test_templates_killed_as_they_start_fail_no_launch_before_the_third(tmp_path: Path, killed: int) -> None:
    pids = tmp_path / "pids"
    hang = f"import os, time\nwith open({str(pids)!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
    hang += f"if len(open({str(pids)!r}).readlines()) <= {killed}:\n    time.sleep(600)\n"
    async with lab(launcher(), **preload(tmp_path, hang)) as tests:
        workers = [tests.start() for _ in range(3)]
        for number in range(killed):
            os.kill(await line_of(pids, number), signal.SIGKILL)
        for worker_id in workers:
            if killed < 3:
                await tests.recorder.wait("ready", worker_id)
            else:
                report = await tests.exited(worker_id)
                assert (report.reason, report.pid) == ("boot_error", None)
                assert "ended before it was ready: killed by SIGKILL" in report.detail


async def line_of(path: Path, number: int) -> int:
    """The number in a line of a file, once it is written."""
    with anyio.fail_after(PATIENCE_S):
        while len(found := lines_of(path)) <= number:  # noqa: ASYNC110  a file tells nobody
            await anyio.sleep(0.01)
    return int(found[number])


def lines_of(path: Path) -> list[str]:
    """The lines that are complete."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


@one_backend
async def test_a_template_without_its_own_module_says_so() -> None:
    async with lab(TemplateLauncher(command=("-P", "-m", "no_such_module"))) as tests:
        report = await tests.exited(tests.start())
        assert report.reason == "boot_error"
        assert "ended before it was ready: exit code 1" in report.detail
        assert report.detail.endswith("No module named no_such_module")


async def test_a_module_that_must_not_be_forked_is_spawned(tmp_path: Path) -> None:
    async with lab(launcher(), **preload(tmp_path, "import os\npipe = os.pipe()\n")) as tests:
        workers = [await tests.ready() for _ in range(2)]
        assert {worker.start_method for worker in workers} == {"spawn"}
        [told] = tests.recorder.of("start_method")
        method, reason = told.value
        assert method == "spawn"
        assert " is pipe:[" in reason
        assert {psutil.Process(worker.pid).ppid() for worker in workers} == {os.getpid()}


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


async def ends(tests: Lab, worker_id: int) -> bool:
    """Whether the worker could not be started; one that could is killed."""
    with anyio.fail_after(PATIENCE_S):
        while not tests.recorder.of("exited", worker_id) and not tests.recorder.of("ready", worker_id):
            await tests.recorder._news.wait()
    started = bool(tests.recorder.of("ready", worker_id))
    if started:
        tests.supervisor.kill(worker_id, "killed", "")
    await tests.exited(worker_id)
    return not started


@one_backend
async def test_running_out_of_descriptors_anywhere_in_a_fork_leaks_none_and_passes() -> None:
    async with lab(launcher(), slots=2) as tests:
        await tests.ready()
        before = open_fds()
        failed = 0
        for number in range(1, 20):
            with free_descriptors(number):
                worker_id = tests.start()
                if await ends(tests, worker_id):
                    failed += 1
                    report = await tests.exited(worker_id)
                    assert report.reason == "boot_error"
                    assert report.detail.startswith("no file descriptor left (Too many open files)")
            assert open_fds() == before
        assert 13 <= failed < 19
        await tests.ready()


@one_backend
async def test_a_template_that_is_out_of_descriptors_for_a_while_is_forked_from_again() -> None:
    async with lab(launcher(), slots=2) as tests:
        template = template_of(await tests.ready())
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        for limit in reversed(range(16)):
            resource.prlimit(template, resource.RLIMIT_NOFILE, (limit, limits[1]))
            worker_id = tests.start()
            if await ends(tests, worker_id):
                report = await tests.exited(worker_id)
                assert report.reason == "boot_error"
                assert report.detail.startswith("no file descriptor left (Too many open files)"), limit
            if limit < 3:  # poll() itself refuses to wait for three: it dies of that, and another one is started
                await dead(template)
                template = template_of(await tests.ready())
            resource.prlimit(template, resource.RLIMIT_NOFILE, limits)
            assert template_of(await tests.ready()) == template
        assert not tests.recorder.of("start_method")


def never_started(start_timeout_s: float = PATIENCE_S) -> Template:
    """A template without a process."""
    request = LaunchRequest(worker_id=1, pool="p", slots=1, python=sys.executable, env={})
    prepare = Prepare([], [], dspy=False)
    return Template(request, prepare, command=(), start_timeout_s=start_timeout_s, listener=Recorder())


LIES: dict[str, tuple[Record, int]] = {
    "a worker without its pidfd": (Forked(1, 1), 0),
    "a worker with two": (Forked(1, 1), 2),
    "a worker that nobody asked for": (Forked(2, 1), 1),
    "a refusal of what nobody asked for": (Refused(2, errno=1), 0),
    "a refusal with descriptors": (Refused(1, errno=1), 3),
    "the end of a worker that was not forked": (Exited(1, 0, None, 0), 0),
    "a request": (Fork(1), 0),
}


@one_backend
@pytest.mark.parametrize("name", LIES)
async def test_a_template_that_lies_is_not_believed_and_leaves_no_descriptor(name: str) -> None:
    record, count = LIES[name]
    template = never_started()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        template._control = ours
        template._asked[1] = AskedFork(1)
        before = open_fds()
        send_record(theirs, record, [0] * count)
        with pytest.raises(ProtocolError):
            template._receive()
        assert open_fds() == before
        assert not template._asked[1].answered.is_set()


@one_backend
async def test_a_template_that_is_dead_stays_dead_whatever_it_said_last() -> None:
    template = never_started()
    template._bury()
    template._take(Prepared(), [])
    assert not template.usable


@one_backend
async def test_an_answer_that_comes_as_the_wait_for_it_ends_is_an_answer() -> None:
    template, asked = never_started(start_timeout_s=0.0), AskedFork(1)
    asked.resolve(BlockingIOError())
    await template._answered(asked)
    assert not template._unreachable


@one_backend
async def test_a_template_that_is_ready_as_its_time_ends_is_ready() -> None:
    template = never_started(start_timeout_s=0.0)
    template._take(Prepared(), [])
    await template._limit_start()
    assert template.failure is None


@one_backend
async def test_a_retired_template_ends_when_its_last_fork_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    template = never_started()

    async def retired_meanwhile(*_: object) -> None:
        template.retire()
        raise TemplateGone

    monkeypatch.setattr(template, "_send", retired_meanwhile)
    with pytest.raises(TemplateGone):
        await template.fork(template._request)
    assert template._expected


async def test_a_template_that_resists_is_dead_at_the_deadline_of_the_close(tmp_path: Path) -> None:
    # Without its lifeline only a SIGKILL ends it, and that comes last.
    deaf = "import fcntl, sys\nfcntl.fcntl(int(sys.argv[sys.argv.index('--lifeline') + 1]), fcntl.F_SETFL, 0)\n"
    resisting = launcher()
    async with lab(resisting, **preload(tmp_path, deaf)) as tests:
        worker = await tests.ready()
        template = template_of(worker)
        os.kill(template, signal.SIGSTOP)
        await tests.supervisor.aclose(time.monotonic())
        assert not psutil.pid_exists(template)


def test_no_fork_comes_between_the_two_steps_of_closing_a_guarded_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def try_the_lock() -> None:
        held.append(not forked._lock.acquire(blocking=False))
        if not held[0]:
            forked._lock.release()

    def close(_: int) -> None:
        thread = threading.Thread(target=try_the_lock)
        thread.start()
        thread.join()

    fd = forked.guard_fd(os.dup(0))
    with monkeypatch.context() as patch:
        patch.setattr("dspool.supervisor.forked.os.close", close)
        forked.close_fd(fd)
    os.close(fd)
    assert held == [True]


async def test_a_launcher_that_does_not_serve_launches_nothing() -> None:
    request = LaunchRequest(worker_id=1, pool="p", slots=1, python=sys.executable, env={})
    with pytest.raises(Exception, match="the pool is closing"):
        await launcher().launch(request)
    await launcher().aclose(time.monotonic())


async def test_a_launch_ends_though_renewals_come_faster_than_a_template_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewed = launcher()

    class RenewedAsItStarts(Template):
        async def live(self) -> None:
            renewed.renew()
            await super().live()

    monkeypatch.setattr("dspool.supervisor.templates.Template", RenewedAsItStarts)
    async with lab(renewed) as tests:
        assert (await tests.ready()).start_method == "template"
