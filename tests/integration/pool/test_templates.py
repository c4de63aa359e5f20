"""Workers that are forked from a template: what a preload may do, who dies of what, and what is left of it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import importlib.util
import os
import random
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import dspool
from dspool.testing.pytest_plugin import MakePool
from tests.integration.pool.conftest import DEADLINE_S, RunScript
from tests.integration.pool.happenings import Happenings

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="templates are for Linux"),
]


@pytest.fixture
def happenings() -> Happenings:
    return Happenings()


Module = Callable[..., Path]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """module(source): a module that the manager's workers find; named "preloaded" where no name is given."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # two versions within a second would share their bytecode

    def write(source: str, name: str = "preloaded") -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        return path

    return write


def template_of(pool: dspool.Pool) -> psutil.Process:
    """The process that the pool's workers were forked from."""
    parents = {psutil.Process(worker.pid).ppid() for worker in pool.workers() if worker.pid is not None}
    [pid] = parents
    return psutil.Process(pid)


def wait_dead(pid: int) -> None:
    """Wait until a process is dead."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], DEADLINE_S)[0], f"process {pid} lives on"
    finally:
        os.close(pidfd)


def pid() -> int:
    return os.getpid()


def same_pid(pool: dspool.Pool) -> int:
    found: int = pool.run(pid, {})
    return found


# --- what a template is ---------------------------------------------------------------------------------------------


def test_workers_are_children_of_one_process_with_one_thread_and_nothing_of_ours_open(make_pool: MakePool) -> None:
    def describe() -> dict[str, Any]:
        names = [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
        fds = [name for name in names if "dspool-limits" not in os.readlink(f"/proc/self/fd/{name}")]
        return {"fds": fds, "session": os.getsid(0) == os.getpid(), "random": random.random()}

    pool = make_pool(workers=3, slots=2)
    stats = pool.stats()
    assert (stats.start_method, stats.start_method_reason) == ("template", "")
    assert {worker.start_method for worker in pool.workers()} == {"template"}
    template = template_of(pool)
    assert template.num_threads() == 1
    found = [pool.run(describe, {}, session=str(number)) for number in range(3)]
    # 0, 1, 2, control, lifeline, dump and two slots; and the file of limits where this process has imported DSPy.
    assert {len(each["fds"]) for each in found} == {8}
    assert all(each["session"] for each in found)
    assert len({each["random"] for each in found}) == 3


def test_a_pool_of_plain_functions_loads_neither_dspy_nor_anyio(script: RunScript) -> None:
    running = script(
        "import dspool, json, sys\n"
        "def loaded():\n"
        "    import sys\n"
        "    return sorted({'dspy', 'anyio'} & set(sys.modules))\n"
        "with dspool.Pool(workers=1) as pool:\n"
        "    print(json.dumps([pool.run(loaded, {}), pool.workers()[0].start_method]), flush=True)\n"
    )
    assert running.line() == [[], "template"]
    assert running.end() == 0


def test_a_pool_with_an_lm_finds_dspy_warm(make_pool: MakePool) -> None:
    def loaded() -> list[bool]:
        return ["dspy" in sys.modules, "dspool.worker.runtime" in sys.modules]

    from dspy.utils import DummyLM

    pool = make_pool(workers=2, lm=DummyLM({"": {"answer": "42"}}))
    assert pool.stats().start_method == "template"
    assert pool.run(loaded, {}) == [True, True]
    assert pool.run("question -> answer", {"question": "?"}).answer == "42"
    # Nothing that children could share: no connection, and none of the disk cache's 48 files.
    assert len(os.listdir(f"/proc/{template_of(pool).pid}/fd")) < 12


def test_each_environment_has_a_template_of_its_own(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    def variables() -> list[str | None]:
        return [os.environ.get(name) for name in ("KIND", "OMP_NUM_THREADS", "MKL_NUM_THREADS")]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    groups = [
        dspool.WorkerGroup(name=name, workers=2, labels=frozenset({name}), env={"KIND": name, "OMP_NUM_THREADS": None})
        for name in ("a", "b")
    ]
    pool = make_pool(workers=groups)
    for name in ("a", "b"):
        assert pool.run(variables, {}, require=name) == [name, None, "1"]
    assert len({psutil.Process(worker.pid).ppid() for worker in pool.workers()}) == 2


def test_each_pool_has_a_template_of_its_own(make_pool: MakePool) -> None:
    first, second = make_pool(workers=1), make_pool(workers=1)
    assert template_of(first).pid != template_of(second).pid
    first.close()
    assert template_of(second).is_running()
    assert same_pid(second) == second.workers()[0].pid


def test_a_worker_may_have_as_many_slots_as_there_can_be(make_pool: MakePool) -> None:
    pool = make_pool(workers=1, slots=128)
    assert pool.workers()[0].start_method == "template"
    assert same_pid(pool) == pool.workers()[0].pid


# --- preload --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (
            "import threading\nthreading.Thread(target=threading.Event().wait, name='ticker', daemon=True).start()\n",
            "'ticker'",
        ),
        ("import socket\npair = socket.socketpair()\n", "socket:["),
        ("import selectors\nselector = selectors.EpollSelector()\n", "eventpoll"),
        (
            "import os\nlistdir = os.listdir\ndef refuse(path='.'):\n    if str(path).startswith('/proc/self'):\n"
            "        raise FileNotFoundError(2, 'gone', path)\n    return listdir(path)\nos.listdir = refuse\n",
            "it can't be known whether it may be forked",
        ),
    ],
    ids=["thread", "connection", "selector", "no-proc"],
)
def test_a_preload_that_breaks_a_rule_is_spawned_and_the_stats_say_what_it_did(
    make_pool: MakePool, module: Module, happenings: Happenings, source: str, named: str
) -> None:
    module(source)
    pool = make_pool(workers=2, preload="preloaded", on_event=happenings)
    stats = pool.stats()
    assert stats.start_method == "spawn"
    assert named in stats.start_method_reason
    assert "since the import of 'preloaded'" in stats.start_method_reason
    assert {worker.start_method for worker in pool.workers()} == {"spawn"}
    fields = happenings.wait("pool.start_method")
    assert (fields["start_method"], fields["reason"]) == ("spawn", stats.start_method_reason)
    assert same_pid(pool) in {worker.pid for worker in pool.workers()}


def test_of_several_preloads_the_one_that_broke_a_rule_is_named(make_pool: MakePool, module: Module) -> None:
    module("import socket\npair = socket.socketpair()\nfor end in pair:\n    end.close()\n")
    sinner = "import socket\npair = socket.socketpair()\n"
    module(sinner, "sinner")
    module("", "afterwards")
    reason = make_pool(workers=1, preload=("preloaded", "json", "sinner", "afterwards")).stats().start_method_reason
    assert "since the import of 'sinner'" in reason


def test_the_rules_are_looked_at_before_each_fork(make_pool: MakePool, module: Module) -> None:
    module(
        "import os, threading\n"
        "def begin():\n"
        "    threading.Thread(target=threading.Event().wait, name='late', daemon=True).start()\n"
        "os.register_at_fork(after_in_parent=begin)\n"
    )
    pool = make_pool(workers=3, preload="preloaded")
    assert "'late'" in pool.stats().start_method_reason
    assert sorted(worker.start_method for worker in pool.workers()) == ["spawn", "spawn", "template"]
    # The template is kept for its one worker: it alone can say how that ends.
    [forked] = [worker for worker in pool.workers() if worker.start_method == "template"]
    assert forked.pid is not None
    template = psutil.Process(forked.pid).ppid()
    pool.kill(forked.worker_id)
    wait_dead(template)
    pool.wait_ready()
    assert {worker.start_method for worker in pool.workers()} == {"spawn"}


def test_a_preload_that_raises_fails_open_at_once_with_its_traceback(make_pool: MakePool, module: Module) -> None:
    module("def prepare():\n    raise LookupError('no luck')\nprepare()\n")
    with pytest.raises(dspool.WorkerStartError) as caught:
        make_pool(workers=2, preload="preloaded")
    assert "LookupError: no luck" in str(caught.value)
    assert caught.value.remote_traceback is not None
    assert "in prepare" in caught.value.remote_traceback


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os, sys\nprint('farewell', file=sys.stderr, flush=True)\nos._exit(3)\n", "exit code 3: farewell"),
        ("import ctypes\nctypes.string_at(0)\n", "killed by SIGSEGV"),
    ],
    ids=["exit", "crash"],
)
def test_a_preload_that_ends_the_template_is_told(make_pool: MakePool, module: Module, source: str, said: str) -> None:
    module(source)
    with pytest.raises(dspool.WorkerStartError, match=said):
        make_pool(workers=2, preload="preloaded")


@pytest.mark.usefixtures("templates_without_dspy")
def test_a_preload_that_never_ends_is_shown_where_it_hangs(make_pool: MakePool, module: Module) -> None:
    module("import time\ndef hang():\n    time.sleep(600)\nhang()\n")
    with pytest.raises(dspool.WorkerStartError) as caught:
        make_pool(workers=1, preload="preloaded", start_timeout_s=4.0)
    assert "not ready within 3.6 s (start_timeout_s=4); it imports 'preloaded'" in str(caught.value)
    assert caught.value.remote_traceback is None, "it raised nothing"
    assert " in hang" in str(caught.value)


def test_what_a_preload_prints_is_not_printed_by_its_workers(make_pool: MakePool, module: Module) -> None:
    def leave() -> None:
        os._exit(9)

    module("import sys\nprint('half a line', end='')\nsys.stderr.write('and another')\n")
    pool = make_pool(workers=1, preload="preloaded")
    with pytest.raises(dspool.WorkerLost) as caught:
        pool.run(leave, {})
    assert caught.value.report is not None
    assert (caught.value.report.output_tail, caught.value.report.exit_code) == ("", 9)


def test_what_c_code_of_a_preload_prints_is_not_printed_by_its_workers(
    make_pool: MakePool, module: Module, happenings: Happenings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # it would take C's buffers away too
    module("import ctypes\nctypes.CDLL(None).puts(b'from C')\n")
    pool = make_pool(workers=1, preload="preloaded", on_event=happenings)
    pool.recycle(pool.workers()[0].worker_id)
    report = happenings.wait("worker.ended")["report"]
    assert (report.exit_code, report.output_tail) == (0, "")


def test_litellm_may_be_preloaded(make_pool: MakePool) -> None:
    if importlib.util.find_spec("litellm") is None:
        pytest.skip("litellm is not installed")

    def loaded() -> bool:
        return "litellm" in sys.modules

    pool = make_pool(workers=2, preload="litellm")
    assert pool.stats().start_method_reason == ""
    assert pool.run(loaded, {}) is True


def test_numpy_may_be_preloaded_and_its_chance_is_each_workers_own(make_pool: MakePool) -> None:
    if importlib.util.find_spec("numpy") is None:
        pytest.skip("numpy is not installed")

    def draw() -> float:
        return float(sys.modules["numpy"].random.random())

    pool = make_pool(workers=3, preload="numpy")
    assert pool.stats().start_method_reason == ""
    assert len({pool.run(draw, {}, session=str(number)) for number in range(3)}) == 3


# --- deaths ---------------------------------------------------------------------------------------------------------


def test_how_a_worker_ended_is_known(make_pool: MakePool) -> None:
    def crash() -> None:
        ctypes.string_at(0)

    pool = make_pool(workers=1)
    with pytest.raises(dspool.WorkerLost) as caught:
        pool.run(crash, {})
    report = caught.value.report
    assert report is not None
    assert (report.reason, report.signal, report.status_known) == ("crash", "SIGSEGV", True)
    assert (report.start_method, report.exit_code) == ("template", None)
    assert report.peak_rss_bytes is not None
    assert "in crash" in report.stack_dump


def test_a_call_that_holds_the_interpreters_lock_is_ended_at_its_deadline(make_pool: MakePool) -> None:
    def hold() -> None:
        ctypes.PyDLL(None).sleep(600)

    pool = make_pool(workers=1)
    with pytest.raises(dspool.CallTimeout) as caught:
        pool.run(hold, {}, timeout_s=0.3)
    assert caught.value.report is not None
    assert (caught.value.report.signal, caught.value.report.status_known) == ("SIGKILL", True)


def escape() -> int:
    """Leave a process behind, out of this one's group and session, that nobody here is the parent of."""
    read_fd, write_fd = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write_fd, str(os.getpid()).encode())
            signal.pause()
        os._exit(0)
    escaped = int(os.read(read_fd, 32))
    os.close(read_fd)
    os.close(write_fd)
    os.wait()
    return escaped


def test_what_escaped_from_a_worker_dies_with_it_and_not_with_another(
    make_pool: MakePool, happenings: Happenings
) -> None:
    pool = make_pool(workers=2, on_event=happenings)
    mine = pool.run(pid, {}, session="mine")
    [other] = {worker.pid for worker in pool.workers()} - {mine}
    assert other is not None
    escaped = pool.run(escape, {}, session="mine")
    os.kill(other, signal.SIGKILL)
    happenings.wait("worker.lost")
    pool.wait_ready()
    assert psutil.Process(escaped).ppid() == mine
    os.kill(mine, signal.SIGKILL)
    wait_dead(escaped)


def test_what_escaped_from_workers_is_dead_when_the_pool_is_closed(make_pool: MakePool) -> None:
    pool = make_pool(workers=2)
    escaped = [pool.run(escape, {}, session=str(number)) for number in range(2)]
    pool.close()
    for each in escaped:
        assert not psutil.pid_exists(each)


class Meeting:
    """A place where calls say that they have begun, and wait to be let go."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(DEADLINE_S)
        self._listener.bind(self.path)
        self._listener.listen(100)
        self._guests: list[socket.socket] = []

    def expect(self, count: int) -> None:
        for _ in range(count):
            self._guests.append(self._listener.accept()[0])

    def let_go(self) -> None:
        for guest in self._guests:
            guest.send(b"x")

    def close(self) -> None:
        for sock in (self._listener, *self._guests):
            sock.close()


def meet(path: str) -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.recv(1)
    return os.getpid()


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    with contextlib.closing(Meeting(tmp_path / "m")) as place:
        yield place


def test_a_templates_death_fails_no_call_and_its_workers_are_replaced(
    make_pool: MakePool, happenings: Happenings, meeting: Meeting
) -> None:
    pool = make_pool(workers=3, on_event=happenings)
    before = {worker.pid for worker in pool.workers()}
    template = template_of(pool)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(pool.run, meet, {"path": meeting.path}) for _ in range(3)]
        meeting.expect(3)
        template.kill()
        told = happenings.wait("template.lost")
        assert (told["pid"], told["how"], told["workers"]) == (template.pid, "killed by SIGKILL", 3)
        for _ in range(3):
            told = happenings.wait("worker.due")
            assert (told["reason"], told["detail"]) == ("reloaded", "its template died")
        meeting.let_go()
        assert {call.result(DEADLINE_S) for call in calls} == before
    for _ in range(3):
        report = happenings.wait("worker.ended")["report"]
        assert (report.pid in before, report.status_known, report.reason) == (True, False, "reloaded")
    pool.wait_ready()
    assert not before & {worker.pid for worker in pool.workers()}
    assert template_of(pool).pid != template.pid
    assert pool.stats().calls_lost == 0


def dies_once(died: Path, *, at_fork: int) -> str:
    """A module whose first template dies as it is about to fork for the so manyth time; then `died` is there."""
    return (
        "import os, signal\n"
        "forks = 0\n"
        "def count():\n"
        "    global forks\n"
        "    forks += 1\n"
        f"    if forks == {at_fork} and not os.path.exists({str(died)!r}):\n"
        f"        open({str(died)!r}, 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.register_at_fork(before=count)\n"
    )


def test_a_template_that_dies_in_a_storm_of_starts_is_replaced_and_all_become_ready(
    make_pool: MakePool, module: Module, tmp_path: Path
) -> None:
    died = tmp_path / "died"
    module(dies_once(died, at_fork=5))
    pool = make_pool(workers=12, preload="preloaded", start_concurrency=8)
    assert died.exists()
    assert pool.health().status == "healthy"
    stats = pool.stats()
    # A worker that was forked a moment before may die with the template: it is started anew, and open() goes on.
    assert stats.start_failures <= 3
    assert stats.start_method == "template"
    assert sum(pool.map(lambda n: n, [{"n": n} for n in range(100)])) == 4950


def test_a_worker_that_dies_with_its_template_before_it_is_ready_is_started_anew(
    make_pool: MakePool, module: Module, tmp_path: Path
) -> None:
    died = tmp_path / "died"
    module(
        dies_once(died, at_fork=2) + "import time\n"
        f"stay = lambda: os.path.exists({str(died)!r}) or time.sleep(5)\n"
        "os.register_at_fork(after_in_child=stay)\n"
    )
    pool = make_pool(workers=2, preload="preloaded", start_concurrency=2)
    stats = pool.stats()
    assert (stats.start_failures, stats.start_method, stats.exits) == (1, "template", {"boot_error": 1})
    assert stats.last_exit is not None
    assert stats.last_exit.detail == "its template died just after it had forked it"


def test_templates_that_always_die_as_they_fork_are_an_error(make_pool: MakePool, module: Module) -> None:
    module("import os\nos.register_at_fork(before=lambda: os._exit(1))\n")
    with pytest.raises(dspool.WorkerStartError, match="3 templates in a row died"):
        make_pool(workers=1, preload="preloaded")


@pytest.mark.timeout(300)
def test_starts_and_ends_leave_no_process_and_no_descriptor(
    make_pool: MakePool, happenings: Happenings, request: pytest.FixtureRequest
) -> None:
    count = 1000 if request.config.getoption("every_pair") else 60
    pool = make_pool(workers=4, on_event=happenings, max_restarts=count)
    list(pool.map(pid, [{}] * 40, concurrency=4))
    template = template_of(pool)
    fds, own = template.num_fds(), len(os.listdir("/proc/self/fd"))
    for number in range(count):
        worker = pool.workers()[0]
        assert worker.pid is not None
        if number % 3:
            os.kill(worker.pid, signal.SIGKILL)
        else:
            pool.recycle(worker.worker_id)
        happenings.wait("worker.lost", "worker.ended")
        pool.wait_ready()
        same_pid(pool)
    pool.drain()
    assert template_of(pool).pid == template.pid
    assert {child.pid for child in template.children()} == {worker.pid for worker in pool.workers()}
    assert template.num_fds() == fds
    assert len(os.listdir("/proc/self/fd")) == own


def test_nothing_is_alive_after_the_manager_is_killed_though_it_forked_a_bystander(
    script: RunScript, all_end: Callable[[list[int]], None]
) -> None:
    running = script(
        "import dspool, json, os, psutil, signal, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "with dspool.Pool(workers=3) as pool:\n"
        "    pids = [worker.pid for worker in pool.workers()]\n"
        "    bystander = os.fork()\n"
        "    if not bystander:\n"
        "        signal.pause()\n"
        "    print(json.dumps([[*pids, psutil.Process(pids[0]).ppid()], bystander]), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    pids, bystander = running.line()
    try:
        running.process.kill()
        all_end(pids)
        assert psutil.pid_exists(bystander)
    finally:
        os.kill(bystander, signal.SIGKILL)


def test_nothing_is_alive_after_the_manager_was_killed_after_its_template(
    script: RunScript, all_end: Callable[[list[int]], None]
) -> None:
    running = script(
        "import dspool, json, os, psutil, signal, sys, threading\n"
        "due = threading.Event()\n"
        "hook = lambda event, fields: due.set() if event == 'worker.due' else None\n"
        "def escape():\n"
        "    import subprocess\n"
        "    return subprocess.Popen(['sleep', '600']).pid\n"
        "with dspool.Pool(workers=2, on_event=hook) as pool:\n"
        "    pids = [worker.pid for worker in pool.workers()]\n"
        "    pids += [pool.run(escape, {}), psutil.Process(pids[0]).ppid()]\n"
        "    os.kill(pids[-1], signal.SIGKILL)\n"
        "    due.wait()\n"
        "    pids += [child.pid for child in psutil.Process().children(recursive=True)]\n"
        "    print(json.dumps(pids), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    pids = running.line()
    running.process.kill()
    all_end(pids)


DAEMON = """
import dspool, json, os, psutil, signal, sys, threading

def leave_a_daemon(path):
    if not os.fork():
        if os.fork():
            os._exit(0)
        os.setsid()
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        signal.pause()
    threading.Event().wait()

path, stopped = sys.argv[1:]
os.mkfifo(path)
with dspool.Pool(workers=2) as pool:
    threading.Thread(target=pool.run, args=(leave_a_daemon, {"path": path}), daemon=True).start()
    with open(path) as file:
        daemon = int(file.read())
    workers = [worker.pid for worker in pool.workers()]
    template = psutil.Process(workers[0]).ppid()
    if stopped == "stopped":
        os.kill(template, signal.SIGSTOP)
        os.waitid(os.P_PID, template, os.WSTOPPED | os.WNOWAIT)
    print(json.dumps([daemon, template, *workers]), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("template", ["running", "stopped"])
def test_a_daemon_of_a_program_dies_with_a_killed_manager(
    script: RunScript, all_end: Callable[[list[int]], None], tmp_path: Path, template: str
) -> None:
    for number in range(3):  # which of the processes the kernel kills first differs from time to time
        running = script(DAEMON, str(tmp_path / f"daemon-{number}"), template)
        pids = running.line()
        running.process.kill()
        all_end(pids)


WONT_END = """
import __main__ as template
import itertools, subprocess

print(subprocess.Popen(["sleep", "600"]).pid, file=open(PIDS, "w"), flush=True)
children, looks = template._children, itertools.count()
# From the second look on there is one more, with a number that nobody has: it is adopted, and never seen to die.
template._children = lambda: children() | ({2**30} if next(looks) else set())
"""


def test_what_a_preload_left_running_dies_with_a_template_that_waits_in_vain(
    script: RunScript, module: Module, all_end: Callable[[list[int]], None], tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    module(f"PIDS = {str(pids)!r}" + WONT_END)
    running = script(
        "import dspool, json, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "with dspool.Pool(workers=1, preload='preloaded') as pool:\n"
        "    print(json.dumps([pool.stats().start_method, *(worker.pid for worker in pool.workers())]), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    method, *workers = running.line()
    assert method == "template"
    running.process.kill()
    all_end([*workers, int(pids.read_text())])


# --- what the system refuses ----------------------------------------------------------------------------------------


def test_where_the_system_refuses_a_process_starts_fail_and_recover(
    make_pool: MakePool, module: Module, happenings: Happenings, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    module(
        "import errno, os\n"
        "fork = os.fork\n"
        "def refuse():\n"
        f"    if os.path.exists({str(full)!r}):\n"
        "        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    return fork()\n"
        "os.fork = refuse\n"
    )
    pool = make_pool(workers=1, preload="preloaded", on_event=happenings)
    worker = same_pid(pool)
    full.touch()
    os.kill(worker, signal.SIGKILL)
    assert happenings.wait("worker.lost")["report"].reason == "crash"
    report = happenings.wait("worker.lost")["report"]
    assert (report.reason, report.pid) == ("boot_error", None)
    assert report.detail.startswith("the system refuses another process (Resource temporarily unavailable)")
    full.unlink()
    pool.wait_ready(timeout_s=DEADLINE_S)
    assert same_pid(pool) != worker


def test_a_fork_whose_pidfd_cannot_be_sent_fails_alone(make_pool: MakePool, module: Module) -> None:
    module(
        "import __main__, errno, os\n"
        "send = __main__.send_record\n"
        "def refuse(sock, record, fds=()):\n"
        "    if fds:\n"
        "        __main__.send_record = send\n"
        "        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))\n"
        "    send(sock, record, fds)\n"
        "__main__.send_record = refuse\n"
    )
    with pytest.raises(dspool.WorkerStartError, match="Too many references"):
        make_pool(workers=1, preload="preloaded")


@pytest.mark.parametrize("left", range(16))
def test_a_template_without_descriptors_says_so(make_pool: MakePool, module: Module, left: int) -> None:
    module(
        "import os, resource\n"
        "free = [fd for fd in range(1000) if not os.path.exists(f'/proc/self/fd/{fd}')]\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (free[{left}], free[{left}]))\n"
    )
    if left >= 10:  # nine for the worker's ends, one to look at itself
        assert make_pool(workers=1, slots=4, preload="preloaded").stats().start_method == "template"
        return
    # With none left it can't even prepare.
    said = r"no file descriptor left .* slots=4" if left else "ended before it was ready: .* Too many open files"
    with pytest.raises(dspool.WorkerStartError, match=said):
        make_pool(workers=1, slots=4, preload="preloaded")


def test_more_workers_than_there_are_descriptors_are_refused_before_anything_starts(make_pool: MakePool) -> None:
    with pytest.raises(dspool.OptionsError, match="4096 workers of slots=128 need 548,864 file descriptors, and"):
        make_pool(workers=4096, slots=128)


# --- options --------------------------------------------------------------------------------------------------------


def test_another_interpreter_is_spawned(make_pool: MakePool) -> None:
    pool = make_pool(workers=1, python=sys.executable)
    assert pool.stats().start_method == "spawn"
    with pytest.raises(dspool.OptionsError, match="needs start_method='spawn'"):
        dspool.PoolOptions(start_method="template", python=sys.executable)
    defaults = dspool.PoolOptions()
    assert (defaults.start_method, defaults.start_concurrency) == ("template", 8)
    assert dspool.PoolOptions.build(defaults, {"python": sys.executable}).start_method == "spawn"


# --- reload ---------------------------------------------------------------------------------------------------------


def version() -> int:
    found: int = sys.modules["preloaded"].VERSION
    return found


def test_a_reload_imports_again_and_ends_the_old_template_last(
    make_pool: MakePool, module: Module, happenings: Happenings
) -> None:
    module("VERSION = 1\n")
    pool = make_pool(workers=2, preload="preloaded", on_event=happenings)
    assert pool.run(version, {}) == 1
    old = template_of(pool)
    module("VERSION = 2\n")
    pool.reload()
    pool.wait_ready()
    assert {pool.run(version, {}) for _ in range(4)} == {2}, "it has waited for the new workers"
    for _ in range(2):
        report = happenings.wait("worker.ended")["report"]
        assert (report.reason, report.exit_code, report.status_known) == ("reloaded", 0, True)
    wait_dead(old.pid)
    assert {pool.run(version, {}, session=str(number)) for number in range(2)} == {2}
    assert template_of(pool).pid != old.pid


def test_a_reload_that_cannot_import_keeps_the_old_template(
    make_pool: MakePool, module: Module, happenings: Happenings
) -> None:
    module("VERSION = 1\n")
    pool = make_pool(workers=2, preload="preloaded", on_event=happenings)
    old = template_of(pool)
    module("VERSION = 1 / 0\n")
    pool.reload()
    fields = happenings.wait("pool.template_kept")
    assert fields["detail"] == "ZeroDivisionError: division by zero"
    assert "VERSION = 1 / 0" in fields["traceback"]
    for _ in range(2):
        happenings.wait("worker.ended")
    pool.wait_ready()
    assert template_of(pool).pid == old.pid
    assert pool.run(version, {}) == 1
    assert pool.stats().start_failures == 0


def test_a_reload_gives_a_preload_that_broke_a_rule_another_chance(
    make_pool: MakePool, module: Module, happenings: Happenings
) -> None:
    module("import socket\npair = socket.socketpair()\nVERSION = 1\n")
    pool = make_pool(workers=1, preload="preloaded", on_event=happenings)
    assert pool.stats().start_method == "spawn"
    module("VERSION = 2\n")
    pool.reload()
    happenings.wait("worker.ended")
    pool.wait_ready()
    stats = pool.stats()
    assert (stats.start_method, stats.start_method_reason) == ("template", "")
    assert pool.run(version, {}) == 2


# --- event loops ----------------------------------------------------------------------------------------------------


CLOSED_LOOP = """
import asyncio, gc, json, os, psutil, sys, warnings
import dspool
{preload}

async def main():
    pool = await dspool.AsyncPool(workers=2, **options).open()
    while not (templates := [child.pid for child in psutil.Process().children()]):
        await asyncio.sleep(0)
    return pool, [*templates, *(worker.pid for worker in await pool.workers() if worker.pid)]

warnings.simplefilter("ignore")
fds = set(os.listdir("/proc/self/fd"))
loop = asyncio.new_event_loop()
pool, pids = loop.run_until_complete(main())
loop.close()
del pool
gc.collect()
print(json.dumps([pids, sorted(set(os.listdir("/proc/self/fd")) - fds)]), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("starting", [False, True], ids=["ready", "starting"])
def test_an_event_loop_closed_under_a_pool_leaves_no_template_and_no_descriptor(
    script: RunScript, all_end: Callable[[list[int]], None], tmp_path: Path, starting: bool
) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    options = {"preload": "slow", "min_ready": 0} if starting else {}
    running = script(CLOSED_LOOP.replace("{preload}", f"options = {options}"))
    pids, left = running.line()
    all_end(pids)  # while the manager lives on
    assert left == []
    assert running.end() == 0
    assert running.errors() == ""
