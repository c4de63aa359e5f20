"""Killing a worker and looking into it, also while C code holds the GIL."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dspool.protocol.limits import DUMP_SIGNAL

if TYPE_CHECKING:
    from tests.integration.worker.conftest import Driven, Launch, Spawn

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def hold_the_gil() -> None:
    """Sleeps in C with the GIL held: no other thread of the process runs Python meanwhile."""
    libc = ctypes.PyDLL(None)
    print("holding", flush=True)
    libc.sleep(600)


def start_stubborn_child() -> int:
    """A child that ignores SIGTERM; returns its pid once it does."""
    child = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; sleep 600"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child.pid


def hold(worker: Driven) -> None:
    worker.slot.create(hold_the_gil, "hold")
    worker.slot.start({}, "hold")
    assert worker.read_output(8) == b"holding\n"


def test_the_lifeline_kills_the_whole_group_at_once(spawn: Spawn) -> None:
    worker = spawn()
    grandchild = os.pidfd_open(worker.slot.run(start_stubborn_child).result["value"])
    hold(worker)
    began = time.monotonic()
    worker.close_lifeline()
    assert worker.exit_code() == -signal.SIGKILL
    assert select.select([grandchild], [], [], 10)[0]
    os.close(grandchild)
    assert time.monotonic() - began < 2


def test_a_lifeline_that_was_closed_before_the_start_ends_it(launch: Launch) -> None:
    worker = launch()
    worker.close_lifeline()
    assert worker.exit_code() in (0, -signal.SIGKILL)


def test_the_dump_signal_shows_the_stacks_while_c_code_holds_the_gil(spawn: Spawn) -> None:
    worker = spawn()
    hold(worker)
    os.kill(worker.process.pid, DUMP_SIGNAL)
    deadline = time.monotonic() + 10
    while "in hold_the_gil" not in worker.stacks():
        assert time.monotonic() < deadline
    assert "most recent call first" in worker.stacks()
    worker.close_lifeline()
    assert worker.exit_code() == -signal.SIGKILL


def test_a_crash_leaves_its_stack_in_the_dump_file(spawn: Spawn) -> None:
    worker = spawn()
    worker.slot.create(lambda: ctypes.string_at(0))
    worker.slot.start()
    assert worker.exit_code() == -signal.SIGSEGV
    assert "Segmentation fault" in worker.stacks()
    assert "in string_at" in worker.stacks()


def test_signals_and_environment_are_those_of_a_worker(spawn: Spawn) -> None:
    def found() -> dict[str, Any]:
        return {
            "int": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            "hup": signal.getsignal(signal.SIGHUP) == signal.SIG_DFL,
            "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "leader": os.getsid(0) == os.getpgrp() == os.getpid(),
            "env": os.environ.get("OMP_NUM_THREADS"),
        }

    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        worker = spawn(env={"OMP_NUM_THREADS": "3"})
    finally:
        signal.signal(signal.SIGHUP, old)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert worker.slot.run(found).result["value"] == {
        "int": True,
        "term": True,
        "hup": True,
        "mask": 0,
        "leader": True,
        "env": "3",
    }


def test_sigint_is_ignored_and_sigterm_ends_it(spawn: Spawn) -> None:
    worker = spawn()
    os.kill(worker.process.pid, signal.SIGINT)
    assert worker.control.ask("ping").success
    os.kill(worker.process.pid, signal.SIGTERM)
    assert worker.exit_code() == -signal.SIGTERM


def test_a_programs_children_do_not_inherit_the_pipes(spawn: Spawn, tmp_path: Path) -> None:
    def inherited() -> str:
        return subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, close_fds=False).stdout

    worker = spawn(slots=2)
    assert [int(fd) for fd in worker.slot.run(inherited).result["value"].split()] == [0, 1, 2, 3]
