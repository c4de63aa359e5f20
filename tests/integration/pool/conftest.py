"""Scripts: a manager in a process of its own, which a test may signal, kill or fork. And what a pool logs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
import structlog

DEADLINE_S = 30.0
QUIET = "import structlog; structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))\n"
"""First line of each script: its stdout is for what it has to say."""


class Script:
    """A running Python script that says what it has to say as lines of JSON."""

    def __init__(self, path: Path, *arguments: str, cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=cwd,
        )
        self.began = time.monotonic()
        self._said = b""

    def line(self) -> Any:
        """The next line it says."""
        assert self.process.stdout is not None
        # Not readline(): it would keep a second line that came with the first, which select() then doesn't see.
        while b"\n" not in self._said:
            if not select.select([self.process.stdout], [], [], DEADLINE_S)[0]:
                raise TimeoutError("the script says nothing")
            said = os.read(self.process.stdout.fileno(), 2**16)
            if not said:
                raise AssertionError(f"the script ended with {self.process.wait()}: {self.errors()}")
            self._said += said
        text, _, self._said = self._said.partition(b"\n")
        return json.loads(text)

    def errors(self) -> str:
        """What it wrote to stderr; when it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def end(self) -> int:
        """Let it go on to its end; its exit code."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        """Kill what is left."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class RunScript(Protocol):
    """Writes a script to a file and starts it."""

    def __call__(self, source: str, *arguments: str, path: Path | None = None, cwd: Path | None = None) -> Script:
        """`source`: its text. `path`: where it is written."""
        ...


@pytest.fixture
def script(tmp_path: Path, no_leaks: None) -> Iterator[RunScript]:
    """Start scripts; they are killed after the test."""
    running: list[Script] = []

    def run(source: str, *arguments: str, path: Path | None = None, cwd: Path | None = None) -> Script:
        path = path or tmp_path / "script.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(QUIET + source, encoding="utf-8")
        running.append(Script(path if cwd is None else Path("..") / path.relative_to(cwd.parent), *arguments, cwd=cwd))
        return running[-1]

    yield run
    for each in running:
        each.close()


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """Every line that is logged, whatever its level; ask for it before a pool."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))
    with structlog.testing.capture_logs() as lines:
        yield lines
    structlog.configure(wrapper_class=before)


@pytest.fixture
def templates_without_dspy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates import no DSPy, whatever the tests before this one have imported.

    Else a template does as its manager did, and a short start_timeout_s may be over before it imports anything else.
    """
    monkeypatch.setattr("dspool.pool.starts.needs_dspy", lambda options: False)


@pytest.fixture
def all_end() -> Callable[[list[int]], None]:
    """Fail if one of these processes is still there after a while."""

    def wait(pids: list[int]) -> None:
        processes = []
        for pid in pids:
            try:
                processes.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(processes, timeout=DEADLINE_S)
        alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        for process in alive:
            process.kill()
        assert not alive

    return wait


@pytest.fixture(scope="session")
def programs(dspy: Any) -> Any:
    """The module of programs to wrap, which workers import by its name."""
    from tests.integration.pool import programs_for_wrap

    return programs_for_wrap
