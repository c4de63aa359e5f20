"""check_environment with real interpreters, real templates and real workers: each failure provoked."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
import pytest

import dspool
from dspool.supervisor.environment import CHECKS, OF_INTERPRETER, OF_START, trial
from dspool.testing.pytest_plugin import MakePool
from dspool.testing.scripted import ScriptedLauncher
from dspool.types import Check, EnvironmentReport
from tests.integration.pool.conftest import DEADLINE_S, RunScript

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("no_leaks", "private_cache")]

linux = pytest.mark.skipif(sys.platform != "linux", reason="templates are for Linux")
Module = Callable[..., Path]


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DSPy's cache as it should be."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("DSPY_CACHEDIR", str(folder))
    for name in list(os.environ):
        if name.endswith(("_API_BASE", "_BASE_URL")):
            monkeypatch.delenv(name)
    return folder


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """module(source, name): a module that workers find."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str, name: str = "preloaded") -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        return path

    return write


@pytest.fixture
def interpreter(tmp_path: Path) -> Callable[[str], Path]:
    """interpreter(script): an executable file."""

    def write(script: str) -> Path:
        path = tmp_path / "python"
        path.write_text(script)
        path.chmod(0o755)
        return path

    return write


def named(report: EnvironmentReport, name: str) -> list[Check]:
    """The checks of that name."""
    return [check for check in report.checks if check.name == name]


def statuses(report: EnvironmentReport) -> dict[str, set[str]]:
    """Check -> what it came to."""
    return {check.name: {each.status for each in named(report, check.name)} for check in report.checks}


# --- a good environment -----------------------------------------------------------------------------------------------


@linux
def test_a_good_environment_is_good_in_every_check() -> None:
    report = dspool.check_environment(
        workers=2,
        lm="openai/gpt-4o-mini",
        env={"OPENAI_API_KEY": "sk-secret-of-nobody"},
        preload=["json", "statistics"],
        warm=["question -> answer"],
        programs=["statistics:mean"],
        required_packages=["msgspec>=0.19", "anyio"],
    )
    assert report.ok, report.failed
    assert report.skipped == ()
    assert set(statuses(report)) == set(CHECKS)
    assert [check.status for check in report.checks if check.name not in ("memory", "cache_privacy")] == ["ok"] * (
        len(report.checks) - 2
    )
    assert [check.subject for check in named(report, "preload")] == ["json", "statistics"]
    assert [check.subject for check in named(report, "program")] == ["question -> answer", "statistics:mean"]
    [worker] = named(report, "worker")
    assert "started (template), ready after" in worker.reason
    assert "protocol version 1" in worker.reason
    assert "sk-secret-of-nobody" not in repr(report)


def test_spawned_workers_are_looked_at_too() -> None:
    report = dspool.check_environment(workers=1, start_method="spawn", programs=["statistics:mean"])
    assert report.ok, report.failed
    assert named(report, "template") == []
    assert "started (spawn)" in named(report, "worker")[0].reason


def test_every_kind_of_worker_is_looked_at(module: Module) -> None:
    module("import os\nassert os.environ['KIND'] == 'b'\n")
    report = dspool.check_environment(
        workers=[
            dspool.WorkerGroup(name="a", workers=1),
            dspool.WorkerGroup(name="b", workers=1, env={"KIND": "b"}, preload=("preloaded",)),
            dspool.WorkerGroup(name="b2", workers=1, env={"KIND": "b"}, preload=("preloaded",)),
        ],
        programs=["statistics:mean"],
    )
    assert report.ok, report.failed
    assert [check.subject for check in named(report, "worker")] == ["a", "b, b2"]
    assert [check.subject for check in named(report, "program")] == ["statistics:mean in a", "statistics:mean in b, b2"]


def test_it_may_be_called_where_a_loop_runs() -> None:
    async def look() -> list[EnvironmentReport]:
        options = dspool.PoolOptions(workers=1)
        return [
            dspool.check_environment(options),
            await anyio.to_thread.run_sync(dspool.check_environment, options),
        ]

    assert all(report.ok for report in asyncio.run(look()))


# --- the interpreter --------------------------------------------------------------------------------------------------


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    report = dspool.check_environment(workers=1, python="/nowhere/bin/python")
    [failed] = report.failed
    assert failed.name == "interpreter"
    assert failed.reason == "Python executable not found: /nowhere/bin/python"
    assert set(report.skipped) == {*OF_INTERPRETER, *OF_START}
    [failed] = dspool.check_environment(workers=1, python=tmp_path).failed
    assert failed.reason == f"Python executable can't be run: {tmp_path} (it is a folder)"
    [failed] = dspool.check_environment(workers=1, python="no-such-python-anywhere").failed
    assert failed.reason == "Python executable not found: no-such-python-anywhere"


def test_an_interpreter_that_is_not_executable(interpreter: Callable[[str], Path]) -> None:
    path = interpreter("#!/bin/sh\n")
    path.chmod(0o644)
    [failed] = dspool.check_environment(workers=1, python=path).failed
    assert failed.reason == f"Python executable can't be run: {path} (it is not executable)"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("#!/nowhere/sh\n", "its first line names an interpreter that doesn't exist"),
        ("#!/bin/sh\necho hello\nexit 7\n", "it ended with exit code 7, and it said: hello"),
        ("#!/bin/sh\nkill -SEGV $$\n", "it was ended by SIGSEGV"),
        ("#!/bin/sh\necho 'dspool-probe {}'\n", "its answer is not one"),
        ("#!/bin/sh\necho 'dspool-probe {oops'\n", "it ended with exit code 0, and it said: dspool-probe {oops"),
        (f"#!{sys.executable}\nprint('dspool-probe ' + '[' * 100_000)\n", "it said: dspool-probe [[["),
        (f"#!{sys.executable}\nprint('\\x1b[2J\\x1b]0;mine\\a')\n", "it said: ?[2J?]0;mine?"),
        ("#!/bin/sh\nexec yes\n", "it wrote more than 4,194,304 bytes"),
        ("#!/bin/sh\nexec 0<&- 1<&- 2<&-\n", "it ended with exit code 0"),
    ],
)
def test_an_interpreter_that_is_none(interpreter: Callable[[str], Path], script: str, said: str) -> None:
    report = dspool.check_environment(workers=1, python=interpreter(script))
    [failed] = report.failed
    assert failed.name == "interpreter"
    assert said in failed.reason
    assert set(report.skipped) == {*OF_INTERPRETER, *OF_START}


def test_an_interpreter_that_never_answers_is_ended_with_what_it_started(
    interpreter: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspool.supervisor.environment import facts

    monkeypatch.setattr(facts, "TIMEOUT_S", 0.5)
    report = dspool.check_environment(workers=1, python=interpreter("#!/bin/sh\nsleep 1000 & sleep 1000\n"))
    [failed] = report.failed
    assert "it was not done within 0.5 s" in failed.reason


def test_an_interpreter_whose_version_is_none(interpreter: Callable[[str], Path]) -> None:
    path = interpreter(
        f"#!{sys.executable}\n"
        "import json\n"
        "facts = dict(executable='x', version='9' * 5000, implementation='CPython', dspool='1', versions={}, "
        "requires={}, code_files=[])\n"
        "print('dspool-probe ' + json.dumps(facts))\n"
    )
    [failed] = dspool.check_environment(workers=1, python=path).failed
    assert (failed.name, "its answer is not one" in failed.reason) == ("interpreter", True)


def test_what_an_interpreter_leaves_running_is_ended(
    interpreter: Callable[[str], Path], all_end: Callable[[list[int]], None], tmp_path: Path
) -> None:
    """It has none of our descriptors: only its group is known."""
    path = interpreter(
        f"#!{sys.executable}\n"
        "import os, subprocess, sys\n"
        "null = subprocess.DEVNULL\n"
        "left = subprocess.Popen(['sleep', '1000'], stdin=null, stdout=null, stderr=null)\n"
        f"with open({str(tmp_path / 'left')!r}, 'a') as file:\n"
        "    print(left.pid, file=file)\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    )
    report = dspool.check_environment(workers=1, python=path)
    assert report.ok, report.failed
    all_end([int(line) for line in (tmp_path / "left").read_text().split()])


def test_an_interpreter_of_another_version_is_told_so(interpreter: Callable[[str], Path]) -> None:
    path = interpreter(
        f"#!{sys.executable}\n"
        "import platform, sys\n"
        "platform.python_version = lambda: '3.8.1'\n"
        "if sys.argv[1] == '-c':\n"
        "    source, sys.argv[:] = sys.argv[2], ['-c']\n"
        "    exec(compile(source, '<string>', 'exec'), {'__name__': '__main__'})\n"
        "else:\n"
        "    sys.exit('unknown option -P')\n"
    )
    report = dspool.check_environment(workers=1, python=path)
    assert [check.name for check in report.failed] == ["python", "worker"]
    assert report.failed[0].reason == "CPython 3.8.1 is too old: dspool needs 3.11 or newer"
    assert "unknown option -P" in report.failed[1].reason


# --- what is installed for it -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing in it."""
    import venv

    folder = tmp_path_factory.mktemp("venv")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    return folder


@pytest.fixture
def site(venv: Path) -> Iterator[Path]:
    """Its folder of packages, from which dspool and what it needs can be imported."""
    [folder] = (venv / "lib").glob("python*/site-packages")
    needed = {str(Path(module.__file__).parent.parent) for module in (dspool, msgspec) if module.__file__}
    (folder / "needed.pth").write_text("\n".join(needed) + "\n")
    yield folder
    for path in folder.glob("*.pth"):
        path.unlink()


def test_an_interpreter_without_dspool_is_told_before_a_worker_fails(venv: Path) -> None:
    report = dspool.check_environment(workers=1, python=venv / "bin" / "python")
    assert [check.name for check in report.failed] == ["dspool", "worker"]
    assert report.failed[0].reason.startswith(f"dspool is not installed for {venv}")
    assert "No module named 'dspool'" in report.failed[1].reason


def test_a_pth_file_that_runs_code_is_told_with_its_code(venv: Path, site: Path) -> None:
    path = site / "telemetry_init.pth"
    path.write_text("/some/folder\nimport os; os.environ.setdefault('SEEN', '1')\nimport sys\n")
    report = dspool.check_environment(workers=1, python=venv / "bin" / "python")
    assert report.ok, report.failed
    [found] = named(report, "pth_files")
    assert found.status == "warning"
    assert found.reason == (
        f"{path} runs code in every start of this interpreter: import os; os.environ.setdefault('SEEN', '1') "
        "... and 1 line more"
    )


def test_packages_are_looked_for_where_the_workers_run(venv: Path, site: Path, make_pool: MakePool) -> None:
    metadata = site / "only_there-1.5.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: only-there\nVersion: 1.5\n")
    python = venv / "bin" / "python"
    [found] = named(dspool.check_environment(workers=1, python=python, required_packages="only-there>=1"), "packages")
    assert (found.status, found.reason) == ("ok", "only-there 1.5")
    make_pool(workers=1, python=python, required_packages="only-there>=1")
    with pytest.raises(dspool.WorkerStartError, match=r"only-there>=2 is needed, and only-there 1\.5 is installed"):
        make_pool(workers=1, python=python, required_packages="only-there>=2")


def test_a_package_that_is_missing_or_too_old_keeps_the_pool_shut(make_pool: MakePool) -> None:
    required = ["msgspec>=1000", "no-such-distribution", "anyio"]
    [failed] = dspool.check_environment(workers=1, required_packages=required).failed
    assert failed.name == "packages"
    assert "msgspec>=1000 is needed, and msgspec" in failed.reason
    assert "no-such-distribution is not installed" in failed.reason
    assert failed.advice.startswith(f"{sys.executable} -m pip install")
    [failed] = dspool.check_environment(workers=1, required_packages=required, start=False).failed
    assert failed.name == "packages"
    with pytest.raises(dspool.WorkerStartError, match="no-such-distribution is not installed"):
        make_pool(workers=1, required_packages=required)


# --- the start --------------------------------------------------------------------------------------------------------


def test_a_worker_that_speaks_another_protocol() -> None:
    report = dspool.check_environment(
        workers=1, start_method="spawn", launcher=ScriptedLauncher(["old_protocol"]), programs=["a:b"]
    )
    [failed] = report.failed
    assert failed.name == "worker"
    assert "speaks protocol version" in failed.reason
    assert failed.advice == f"install the dspool that is used here for {sys.executable} too"
    assert report.skipped == ("program",)


@pytest.mark.parametrize("fault", ["boot_error", "exit", "crash", "garbage", "eof"])
def test_a_worker_that_can_not_start(fault: str) -> None:
    report = dspool.check_environment(workers=1, start_method="spawn", launcher=ScriptedLauncher([fault]))
    assert [check.name for check in report.failed] == ["worker"]
    assert "a worker can't be started: " in report.failed[0].reason


def test_a_worker_that_is_never_ready_is_ended() -> None:
    report = dspool.check_environment(
        workers=1, start_method="spawn", launcher=ScriptedLauncher(["hang"]), start_timeout_s=0.5
    )
    [failed] = report.failed
    assert "start_timeout: it was not ready within start_timeout_s=0.5" in failed.reason


@linux
def test_a_preload_that_starts_a_thread_is_named_with_its_rule(module: Module) -> None:
    module("import threading\nthreading.Thread(target=threading.Event().wait, name='poller', daemon=True).start()\n")
    report = dspool.check_environment(workers=1, preload=["json", "preloaded"])
    assert report.ok, report.failed
    [found] = named(report, "template")
    assert found.status == "warning"
    assert "'poller'" in found.reason
    assert "since the import of 'preloaded'" in found.reason
    assert "started (spawn)" in named(report, "worker")[0].reason


@pytest.mark.parametrize("start_method", ["spawn", pytest.param("template", marks=linux)])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('no luck')\n", "can't be imported: RuntimeError: no luck"),
        ("import no_such_module_anywhere\n", "can't be imported: ModuleNotFoundError: No module named 'no_such_module"),
        ("import os\nos._exit(9)\n", "can't be imported: its import never ended: it ended with exit code 9"),
    ],
)
def test_a_preload_that_can_not_be_imported_is_named(module: Module, start_method: str, source: str, said: str) -> None:
    module(source)
    report = dspool.check_environment(
        workers=1, start_method=start_method, preload=["json", "preloaded", "statistics"], programs=["statistics:mean"]
    )
    assert [check.name for check in report.failed] == ["worker", "preload"]
    assert [(check.subject, check.status) for check in named(report, "preload")] == [
        ("json", "ok"),
        ("preloaded", "failed"),
    ]
    assert report.failed[1].reason.startswith(said)
    assert ("Traceback" in report.failed[0].details) is ("exit code" not in said)
    assert report.skipped == ("program",)


def test_programs_that_do_not_load_are_named_and_the_others_load(module: Module) -> None:
    module(
        """
        import os

        def good():
            return 1

        def __getattr__(name):
            if name == "deadly":
                os._exit(5)
            raise AttributeError(name)
        """,
        "programs",
    )
    report = dspool.check_environment(
        workers=1,
        warm=["programs:good"],
        programs=["programs:deadly", "programs:missing", "nowhere:f", "not a program", "programs:good"],
    )
    found = {check.subject: check.reason for check in named(report, "program")}
    assert found["programs:good"] == "loads"
    assert found["programs:deadly"] == "doesn't load: loading it ended the worker: exited: exit code 5"
    assert "missing" in found["programs:missing"]
    assert "No module named 'nowhere'" in found["nowhere:f"]
    assert "neither a signature" in found["not a program"]
    assert len(report.failed) == 4
    assert "Traceback" in next(check.details for check in report.failed if check.subject == "nowhere:f")


@pytest.mark.parametrize("program", ["question -> answer", {"signature": "question -> answer"}, len])
def test_a_program_that_stands_alone_is_not_taken_apart(program: Any) -> None:
    with pytest.raises(dspool.OptionsError, match=r"programs is a list, also of one: programs=\["):
        dspool.check_environment(programs=program, start=False)
    with pytest.raises(dspool.OptionsError, match="programs= takes a list"):
        dspool.check_environment(program=program, start=False)


def test_what_is_missing_can_be_installed_by_pasting_the_advice() -> None:
    report = dspool.check_environment(
        required_packages=["no-such-a; python_version < '4'", "no-such-b>=2"], start=False
    )
    (failed,) = report.failed
    assert shlex.split(failed.advice)[4:] == ['no-such-a; python_version < "4"', "no-such-b>=2"]


def test_a_key_in_an_error_or_an_output_is_masked(module: Module, interpreter: Callable[[str], Path]) -> None:
    module("import os\nprint(os.environ['APP_KEY'], flush=True)\nraise RuntimeError(os.environ['APP_KEY'])\n")
    options: dict[str, Any] = {"workers": 1, "env": {"APP_KEY": "key-of-nobody"}}
    report = dspool.check_environment(**options, preload="preloaded")
    assert [check.name for check in report.failed] == ["worker", "preload"]
    assert "RuntimeError: ***" in report.failed[1].reason
    assert "key-of-nobody" not in repr(report)
    module("import os\nos.write(1, os.environ['APP_KEY'].encode())\nos._exit(3)\n")
    report = dspool.check_environment(**options, preload="preloaded")
    assert "exit code 3: ***" in report.failed[0].reason
    assert "key-of-nobody" not in repr(report)
    report = dspool.check_environment(**options, python=interpreter('#!/bin/sh\necho "$APP_KEY"\n'))
    assert "it said: ***" in report.failed[0].reason


def test_a_program_that_never_loads_is_given_up(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "load_timeout_s", lambda start_timeout_s: start_timeout_s / 30)
    module("import threading\ndef __getattr__(name):\n    threading.Event().wait()\n", "programs")
    report = dspool.check_environment(workers=1, programs=["programs:f", "statistics:mean"])
    found = {check.subject: check.reason for check in named(report, "program")}
    assert found == {
        "programs:f": "doesn't load: it was not loaded within 2 s (start_timeout_s)",
        "statistics:mean": "loads",
    }


# --- limits -----------------------------------------------------------------------------------------------------------

FEW_DESCRIPTORS = """
import json, resource
import dspool

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
found = {}
for workers in (2, 11, 40):
    report = dspool.check_environment(workers=workers, start=False)
    [check] = [check for check in report.checks if check.name == "descriptors"]
    found[workers] = [check.status, check.reason]
try:
    dspool.Pool(workers=40).open()
except dspool.OptionsError as error:
    found["open"] = str(error)
print(json.dumps(found), flush=True)
"""


def test_a_low_limit_of_descriptors(script: RunScript) -> None:
    running = script(FEW_DESCRIPTORS)
    found = running.line()
    assert running.end() == 0, running.errors()
    assert found["2"][0] == "ok"
    assert found["11"][0] == "warning"
    assert "more while they start" in found["11"][1]
    assert found["40"] == [
        "failed",
        "40 workers of slots=1 need 280 file descriptors, and this process may have 100",
    ]
    assert "need 280 file descriptors, and this process may have 100. Raise RLIMIT_NOFILE" in found["open"]


def test_more_than_the_machine_has_fails_in_each_check_it_fails_for() -> None:
    report = dspool.check_environment(workers=4096, slots=128, start_method="spawn", preload=["litellm"], start=False)
    assert {"descriptors", "memory"} <= {check.name for check in report.failed}
    assert [check.status for check in named(report, "cores")] == ["warning"]


NO_DESCRIPTORS = """
import json, os, resource, sys
import dspool

dspool.check_environment(workers=1)  # imports what it needs
highest = max(map(int, os.listdir("/proc/self/fd")))
report = None
for more in range(1, 40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, 4096))
    report = dspool.check_environment(workers=1)
    before = len(os.listdir("/proc/self/fd")) if more > 1 else None
    print(json.dumps([sorted({check.name for check in report.failed}), before]), flush=True)
    if not report.failed:
        break
"""


def test_a_process_without_descriptors_is_told_so_and_loses_none(script: RunScript) -> None:
    running = script(NO_DESCRIPTORS)
    told: list[Any] = []
    while not told or told[-1][0]:
        told.append(running.line())
    assert running.end() == 0, running.errors()
    assert "descriptors" in told[0][0]
    assert len(told) > 3
    assert len({before for _, before in told[1:]}) == 1


# --- open() -----------------------------------------------------------------------------------------------------------


def test_open_tells_once_what_may_hurt(make_pool: MakePool, private_cache: Path) -> None:
    private_cache.chmod(0o777)
    happenings: list[tuple[str, Any]] = []
    pool = make_pool(
        workers=2,
        lm="ollama_chat/none",
        on_event=lambda *event: happenings.append(event),
        env={"OLLAMA_CHAT_BASE_URL": "http://127.0.0.1:1"},
    )
    pool.reload()
    pool.close()
    told = [fields for name, fields in happenings if name == "pool.environment"]
    assert [(fields["check"], fields["status"]) for fields in told] == [("lm_gateway", "warning"), ("cache", "failed")]
    assert told[1]["advice"].startswith(f"chmod 700 {private_cache}")


def test_open_of_a_lazy_pool_finds_that_no_worker_could_start(make_pool: MakePool) -> None:
    with pytest.raises(dspool.WorkerStartError, match="Python executable not found: /nowhere/python"):
        make_pool(workers=1, lazy=True, python="/nowhere/python")


# --- interrupted ------------------------------------------------------------------------------------------------------

INTERRUPTED = """
import json, os, sys
import dspool

options = {"preload": ["waiting"], "start_method": sys.argv[1]} if len(sys.argv[1]) < 9 else {"python": sys.argv[1]}
try:
    dspool.check_environment(workers=1, **options)
except KeyboardInterrupt:
    print(json.dumps("interrupted"), flush=True)
sys.stdin.read()
"""
WAITING = """
import os
with open({folder!r} + "/reached", "w") as reached:
    reached.write(str(os.getpid()))
open({folder!r} + "/never").read()
"""


@pytest.mark.parametrize("start_method", ["spawn", pytest.param("template", marks=linux)])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_it_is_interrupted(
    script: RunScript, all_end: Callable[[list[int]], None], tmp_path: Path, start_method: str, signum: int
) -> None:
    for name in ("reached", "never"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "waiting.py").write_text(WAITING.format(folder=str(tmp_path)))
    running = script(INTERRUPTED, start_method)
    pid = int((tmp_path / "reached").read_text())
    running.process.send_signal(signum)
    if signum == signal.SIGINT:
        assert running.line() == "interrupted"
    all_end([pid])


def has_lifeline(pid: int) -> bool:
    """Whether one of a process's descriptors tells its group of its other end's closing."""
    flags = [path.read_text().split("flags:")[1].split()[0] for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
    return any(int(each, 8) & os.O_ASYNC for each in flags)


@linux
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_it_is_interrupted_as_it_asks_an_interpreter(
    script: RunScript,
    all_end: Callable[[list[int]], None],
    tmp_path: Path,
    interpreter: Callable[[str], Path],
    signum: int,
) -> None:
    for name in ("reached", "never"):
        os.mkfifo(tmp_path / name)
    waiting = f"#!/bin/sh\nsleep 1000 &\necho $$ $! > {tmp_path}/reached\nread line < {tmp_path}/never\n"
    running = script(INTERRUPTED, str(interpreter(waiting)))
    pids = [int(word) for word in (tmp_path / "reached").read_text().split()]
    deadline = time.monotonic() + DEADLINE_S
    while not has_lifeline(pids[0]):  # killed before, it could not have given it one; and nobody tells
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)
    running.process.send_signal(signum)
    if signum == signal.SIGINT:
        assert running.line() == "interrupted"
    all_end(pids)
