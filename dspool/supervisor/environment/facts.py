"""Asks the workers' interpreter what it is and has: runs probe.py in it.

Rules:
    1. The process has a session of its own and a lifeline: whatever ends this one, or the wait for it, ends it and all
       it started. Only in the instant between its start and its lifeline a SIGKILL to this process leaves it; a Python
       then reads the end of its stdin, and ends.
    2. Its answer is read line by line when it has ended, or its time is up; what it hangs in is known by what is
       missing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from dspool.supervisor import forked
from dspool.supervisor.environment import probe
from dspool.supervisor.launch import arm_lifeline

TIMEOUT_S = 20.0
"""What an interpreter may take to say what it is."""
_SOURCE = Path(probe.__file__).read_text(encoding="utf-8")


class Facts(msgspec.Struct, frozen=True):
    """What an interpreter says of itself.

    Attributes:
        executable: its path, as it knows it.
        version: as in "3.11.9".
        implementation: as in "CPython".
        dspool: the version that a worker's start finds there; None: none, empty: one without a version.
        versions: distribution -> version, None where it isn't installed.
        requires: distribution -> its requirements.
        code_files: .pth files and their lines of code.
    """

    executable: str
    version: str
    implementation: str
    dspool: str | None
    versions: dict[str, str | None]
    requires: dict[str, list[str]]
    code_files: list[tuple[str, list[str]]]


class NoFacts(Exception):
    """Raised when it is no interpreter that can be asked; the text says why."""


def read_facts(python: str, sys_path: Sequence[str], packages: Sequence[str], environment: Mapping[str, str]) -> Facts:
    """Ask an interpreter.

    Raises:
        NoFacts: it gave no answer.
        OSError: it can't be started.
    """
    question = {"sys_path": list(sys_path), "packages": list(packages)}
    answers, ended = _ask(python, question, environment, TIMEOUT_S)
    if not answers:
        raise NoFacts(ended)
    try:
        return msgspec.convert(answers[-1], Facts)
    except msgspec.ValidationError as error:
        raise NoFacts(f"its answer is not one: {error}") from None


def failing_import(
    python: str, sys_path: Sequence[str], modules: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> tuple[str, str] | None:
    """Which of these modules, imported in order, is the first to fail, and how; None where none does."""
    answers, ended = _ask(python, {"sys_path": list(sys_path), "imports": list(modules)}, environment, timeout_s)
    for module, problem in answers:
        if problem:
            return module, problem
    if len(answers) < len(modules):
        return modules[len(answers)], f"its import never ended: {ended}"
    return None


def _ask(
    python: str, question: Mapping[str, Any], environment: Mapping[str, str], timeout_s: float
) -> tuple[list[Any], str]:
    """The answers, and how the process ended, for where there are too few of them."""
    with forked.creating():
        lifeline_end, lifeline = os.pipe()
        forked.guard_fd(lifeline)
    try:
        process = subprocess.Popen(
            [python, "-c", _SOURCE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=(lifeline_end,),
            start_new_session=True,
        )
        try:
            arm_lifeline(lifeline_end, process.pid)
            output, ended = _converse(process, json.dumps(question).encode(), timeout_s)
        finally:
            _end(process)
    finally:
        os.close(lifeline_end)
        forked.close_fd(lifeline)
    lines = output.decode("utf-8", "replace").splitlines()
    answers = [json.loads(line[len(probe.MARK) :]) for line in lines if line.startswith(probe.MARK)]
    said = " ".join(line for line in lines if line and not line.startswith(probe.MARK)).strip()
    return answers, f"{ended}, and it said: {said}" if said else ended


def _converse(process: subprocess.Popen[bytes], question: bytes, timeout_s: float) -> tuple[bytes, str]:
    try:
        output, _ = process.communicate(question, timeout_s)
    except subprocess.TimeoutExpired as late:
        return late.output or b"", f"it was not done within {timeout_s:g} s"
    code = process.returncode
    return output, f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of it and of its group, which no other has as long as it is not reaped."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
