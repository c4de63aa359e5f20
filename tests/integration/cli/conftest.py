"""The real command line, as a subprocess in a folder of its own that holds some programs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

PROGRAMS = '''
import os


def square(n: int) -> int:
    return n * n


def who(n: int) -> dict:
    return {"n": n, "pid": os.getpid()}


def picky(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n


def gate(n: int, at: int, folder: str) -> int:
    """Row `at` tells its worker's pid through a FIFO and then waits for good."""
    if n == at:
        with open(os.path.join(folder, "reached"), "w") as reached:
            reached.write(str(os.getpid()))
        with open(os.path.join(folder, "never")) as never:
            never.read()
    return n


def leave(n: int) -> None:
    os._exit(3)


def once(n: int, folder: str) -> int:
    """The first call of row 2 ends its process."""
    if n == 2:
        try:
            os.mkdir(os.path.join(folder, "seen"))
        except FileExistsError:
            return n
        os._exit(3)
    return n


def noisy(n: int) -> int:
    print("noise from the worker", flush=True)
    return n


def strange(n: int) -> float:
    return float("nan")
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that commands are run in."""
    (tmp_path / "tasks.py").write_text(PROGRAMS, encoding="utf-8")
    return tmp_path


@pytest.fixture
def environment() -> dict[str, str]:
    """An environment without keys, in which a terminal is what the test makes it."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.endswith("_API_KEY") and name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    }


@pytest.fixture
def cli(folder: Path, environment: dict[str, str]) -> Cli:
    """Run a command to its end."""

    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dspool", *arguments],
            cwd=folder,
            env=environment | variables,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=55,
        )

    return run


@pytest.fixture
def start(folder: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Start a command and leave it running; what is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dspool", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def gate(folder: Path) -> Callable[[], int]:
    """Wait until the gated row is reached; returns its worker's pid."""
    os.mkfifo(folder / "reached")
    os.mkfifo(folder / "never")

    def wait() -> int:
        return int((folder / "reached").read_text(encoding="utf-8"))

    return wait


@pytest.fixture
def written(folder: Path) -> Callable[[int], None]:
    """Wait until out.jsonl has so many lines: a row's worker may be on the next row before the line is written."""

    def wait(count: int) -> None:
        deadline = time.monotonic() + 20.0
        while (folder / "out.jsonl").read_bytes().count(b"\n") < count:
            assert time.monotonic() < deadline, f"out.jsonl has no {count} lines after 20 s"
            time.sleep(0.01)

    return wait


@pytest.fixture
def gone() -> Callable[[int], bool]:
    """Wait until a process that is no child of ours is gone; False if it is still there after 10 s."""

    def wait(pid: int) -> bool:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([pidfd], [], [], 10.0)[0])
        finally:
            os.close(pidfd)

    return wait


@pytest.fixture
def write_rows(folder: Path) -> Callable[..., str]:
    """Write rows.jsonl with so many rows {"n": 0}, {"n": 1}, ... and further inputs in each."""

    def write(count: int, **more: Any) -> str:
        lines = [json.dumps({"n": n, **more}) + "\n" for n in range(count)]
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        return "rows.jsonl"

    return write


@pytest.fixture
def read_lines(folder: Path) -> Callable[[], list[dict[str, Any]]]:
    """The lines of out.jsonl."""

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]

    return read
