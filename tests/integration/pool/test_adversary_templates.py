"""What an adversary tried on templates: preload modules that fork or close, workers that die without their template."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import dspool
from dspool.testing.pytest_plugin import MakePool
from tests.integration.pool.conftest import DEADLINE_S, RunScript

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(sys.platform != "linux", reason="templates are for Linux"),
]

Module = Callable[[str], None]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """module(source): "preloaded_by_adversary", a module that the manager's workers find."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> None:
        (tmp_path / "preloaded_by_adversary.py").write_text(source)

    return write


def template_of(pool: dspool.Pool) -> int:
    parents = {psutil.Process(worker.pid).ppid() for worker in pool.workers() if worker.pid is not None}
    [pid] = parents
    return pid


def leave_a_child(path: str) -> None:
    """Start a process in this group, then exit."""
    child = subprocess.Popen(["sleep", "300"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    Path(path).write_text(str(child.pid))
    os._exit(3)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_what_a_worker_started_dies_with_it_though_its_template_cannot_see_to_it(
    make_pool: MakePool, tmp_path: Path, signum: int
) -> None:
    pool = make_pool(workers=1)
    with pool.checkout() as lease:
        os.kill(template_of(pool), signum)
        with pytest.raises(dspool.WorkerLost):
            lease.run(leave_a_child, {"path": str(tmp_path / "pid")})
    child = int((tmp_path / "pid").read_text())
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(child)
        try:
            if not select.select([pidfd], [], [], DEADLINE_S)[0]:
                os.kill(child, signal.SIGKILL)
                pytest.fail("it lives on")
        finally:
            os.close(pidfd)


CONTAINER = """
import ctypes, json, os, signal
import dspool

PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # as process 1 is one

def die():
    os._exit(5)

with dspool.Pool(workers=1) as pool:
    with pool.checkout() as lease:
        with open(f"/proc/{lease.worker.pid}/stat") as file:
            template = int(file.read().rsplit(")")[-1].split()[1])
        os.kill(template, signal.SIGKILL)
        while open(f"/proc/{lease.worker.pid}/stat").read().rsplit(")")[-1].split()[1] == str(template):
            pass
        try:
            lease.run(die, {})
        except dspool.WorkerLost as error:
            code = error.report.exit_code
with open(f"/proc/self/task/{os.getpid()}/children") as file:
    own = file.read()
for task in os.listdir("/proc/self/task"):
    own += open(f"/proc/self/task/{task}/children").read()
print(json.dumps([code, own]), flush=True)
"""


def test_a_manager_that_inherits_workers_collects_them_and_knows_how_they_ended(script: RunScript) -> None:
    running = script(CONTAINER)
    assert running.line() == [5, ""]
    assert running.end() == 0, running.errors()


@pytest.mark.parametrize(
    "source",
    [
        "import os, sys\nif (pid := os.fork()) == 0:\n    sys.exit(0)\nos.waitpid(pid, 0)\n",
        "import os\nos.fork()\n",
    ],
    ids=["the child exits", "the child goes on"],
)
def test_a_preload_that_forks_makes_one_template(make_pool: MakePool, module: Module, source: str) -> None:
    module(source)
    pool = make_pool(workers=3, preload=["preloaded_by_adversary"])
    assert pool.stats().start_method == "template"
    # A second one would answer the same socket; it ends as soon as it comes back from the import.
    others = {child.pid for child in psutil.Process(template_of(pool)).children()}
    others -= {worker.pid for worker in pool.workers() if worker.pid is not None}
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in others], timeout=DEADLINE_S)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_an_alarm_that_a_preload_never_calls_off_does_not_end_the_template(make_pool: MakePool, module: Module) -> None:
    # Long enough for a busy machine: an alarm that comes while modules are imported still ends the template.
    module("import signal\nsignal.setitimer(signal.ITIMER_REAL, 2.0)\n")
    pool = make_pool(workers=1, preload=["preloaded_by_adversary"])
    pidfd = os.pidfd_open(template_of(pool))
    try:
        assert not select.select([pidfd], [], [], 2.1)[0]
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("source", ["import os\nos.close(0)\n", "import os\nos.closerange(0, 3)\n"])
def test_a_preload_that_closes_the_standard_streams_gives_no_workers_pipe_their_numbers(
    make_pool: MakePool, module: Module, source: str
) -> None:
    def standard() -> list[Any]:
        return [os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in range(3)]

    module(source)
    pool = make_pool(workers=1, preload=["preloaded_by_adversary"])
    assert pool.run(standard, {}) == ["/dev/null", "pipe", "pipe"]
