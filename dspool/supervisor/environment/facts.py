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
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dspool.supervisor import forked
from dspool.supervisor.environment import probe
from dspool.supervisor.launch import arm_lifeline

TIMEOUT_S = 20.0
"""What an interpreter may take to say what it is."""
MAX_OUTPUT_BYTES = 4 * 2**20
"""What it may write, with all that it imports. What floods is no answer, and is ended."""
_PIECE_BYTES = 64 * 1024
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
    version: Annotated[str, msgspec.Meta(pattern=r"^\d{1,4}\.\d{1,4}", max_length=100)]
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
    try:
        tried = msgspec.convert(answers, list[tuple[str, str]])
    except msgspec.ValidationError as error:
        return modules[0], f"what it told of its imports is no answer: {error}"
    for module, problem in tried:
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
        # In this order: what it has left running may hold no end of it, and then only ours can tell its group.
        forked.close_fd(lifeline)
        os.close(lifeline_end)
    answers: list[Any] = []
    noise: list[str] = []
    for line in output.decode("utf-8", "replace").splitlines():
        try:
            answers.append(_answer_in(line))
        except (ValueError, RecursionError):
            noise.append(line)
    said = "".join(char if char.isprintable() else "?" for char in " ".join(filter(None, noise))).strip()
    return answers, f"{ended}, and it said: {said}" if said else ended


def _answer_in(line: str) -> Any:
    if not line.startswith(probe.MARK):
        raise ValueError(line)
    return json.loads(line[len(probe.MARK) :])


def _converse(process: subprocess.Popen[bytes], question: bytes, timeout_s: float) -> tuple[bytes, str]:
    deadline = time.monotonic() + timeout_s
    output = bytearray()
    try:
        _exchange(process, question, output, deadline)
        if len(output) > MAX_OUTPUT_BYTES:
            return b"", f"it wrote more than {MAX_OUTPUT_BYTES:,} bytes"
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return bytes(output), f"it was not done within {timeout_s:g} s"
    code = process.returncode
    told = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
    return bytes(output), told


def _exchange(process: subprocess.Popen[bytes], question: bytes, output: bytearray, deadline: float) -> None:
    """Write the question, and collect what comes until its end; or until there is too much of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    left = memoryview(question)
    with selectors.DefaultSelector() as streams:
        for stream, event in ((process.stdin, selectors.EVENT_WRITE), (process.stdout, selectors.EVENT_READ)):
            os.set_blocking(stream.fileno(), False)
            streams.register(stream, event)
        while streams.get_map() and len(output) <= MAX_OUTPUT_BYTES:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise subprocess.TimeoutExpired(process.args, left_s)
            for key, _ in streams.select(left_s):
                if key.fileobj is process.stdout:
                    piece = os.read(key.fd, _PIECE_BYTES)
                    output += piece
                    if not piece:
                        streams.unregister(key.fileobj)
                    continue
                with suppress(BrokenPipeError):
                    left = left[os.write(key.fd, left) :]
                    if left:
                        continue
                streams.unregister(key.fileobj)  # all of it is written, or nobody reads it
                process.stdin.close()


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
