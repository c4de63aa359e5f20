"""What an Executor leaves when the interpreter ends without shutdown(), and what a script's functions see."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT_S = 40.0
QUIET = "import structlog; structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))\n"


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """A script run to its end."""
    path = folder / "script.py"
    path.write_text(QUIET + script)
    return subprocess.run(
        [sys.executable, "-W", "error", str(path)], cwd=folder, capture_output=True, text=True, timeout=LIMIT_S
    )


def gone(pid: int) -> bool:
    """Whether the process ends in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], LIMIT_S)[0])
    finally:
        os.close(fd)


def test_calls_that_were_taken_are_finished_at_the_interpreters_exit(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import time, pathlib, dspool
def work(number):
    time.sleep(0.2)
    pathlib.Path(f"done-{number}").write_text("x")
executor = dspool.Executor(2, grace_s=30)  # the workers' start is in it
for number in range(6):
    executor.submit(work, number)
""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(list(tmp_path.glob("done-*"))) == 6


@pytest.mark.parametrize("ending", ["", "executor.shutdown(wait=False)", "del executor"])
def test_a_call_that_never_ends_does_not_hold_the_interpreter_up(tmp_path: Path, ending: str) -> None:
    done = run(
        tmp_path,
        f"""
import os, time, dspool
os.mkfifo("pipe")
def work():
    with open("pipe", "w") as pipe:
        pipe.write(str(os.getpid()))
    time.sleep(1000)
executor = dspool.Executor(1, grace_s=0.3)
future = executor.submit(work)
with open("pipe") as pipe:
    print(pipe.read())
{ending}
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert gone(int(done.stdout))


def test_submit_at_exit_is_refused(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import atexit
@atexit.register
def run_last():
    try:
        executor.submit(id, None)
    except RuntimeError as error:
        print(error)
import dspool
executor = dspool.Executor(1)
executor.submit(id, 42).result()
""",
    )
    assert done.stdout == "cannot schedule new futures after interpreter shutdown\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_an_initializer_of_a_script_sets_what_its_functions_see(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import dspool
connection = None
seen = []
def connect(name):
    global connection
    connection = name
def work(number):
    seen.append(number)
    return connection, len(seen)
def helper():
    return "old"
def ask():
    return helper()
with dspool.Executor(1, initializer=connect, initargs=("db",)) as executor:
    print(executor.submit(work, 1).result(), executor.submit(work, 2).result(), executor.submit(ask).result())
    def helper():
        return "new"
    print(executor.submit(ask).result(), list(executor.map(work, range(2), chunksize=2)))
print(connection, seen)
""",
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "('db', 1) ('db', 2) old",
        "new [('db', 3), ('db', 4)]",
        "None []",
    ]
