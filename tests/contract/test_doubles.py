"""The doubles themselves: a fake says that it is one, and the fixtures see what a test leaves behind."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

import dspool
from dspool.testing.fake import FakeCall, FakeLauncher, Late, Trigger
from dspool.testing.pytest_plugin import Census, MakePool
from dspool.testing.scripted import ScriptedLauncher


def ask(**inputs: Any) -> Any:
    """A program; no fake ever runs it."""
    raise AssertionError


def test_an_unscripted_call_is_an_error_that_names_it(make_pool: MakePool) -> None:
    pool = make_pool(workers=1, launcher=FakeLauncher())
    with pytest.raises(dspool.ProgramError, match=r"nobody scripted its answer to call of .*ask") as caught:
        pool.run(ask, {})
    assert caught.value.code == "unscripted"


def test_a_script_sees_the_call_and_may_raise(make_pool: MakePool) -> None:
    seen: list[FakeCall] = []

    def answer(call: FakeCall) -> Any:
        seen.append(call)
        raise LookupError("scripted")

    launcher = FakeLauncher(answer)
    pool = make_pool(workers=1, launcher=launcher)
    with pytest.raises(dspool.ProgramError, match="scripted") as caught:
        pool.run(ask, {"a": [1]}, session="s")
    assert caught.value.type == "builtins.LookupError"
    (call,) = seen
    assert launcher.calls == seen
    assert (call.worker_id, call.slot, call.number, call.inputs) == (1, 0, 1, {"a": [1]})
    assert call.request.session_id == "s"
    assert call.program.endswith("ask")


def test_a_late_answer_waits_for_its_trigger(make_pool: MakePool) -> None:
    trigger = Trigger()
    pool = make_pool(workers=1, launcher=FakeLauncher(lambda call: Late(trigger, "late")))
    threading.Timer(0.01, trigger.pull).start()
    assert pool.run(ask, {}) == "late"
    assert pool.run(ask, {}) == "late"


def test_no_process_is_made_for_a_fake(make_pool: MakePool) -> None:
    before = Census()
    pool = make_pool(workers=3, launcher=FakeLauncher(lambda call: os.getpid()))
    assert before.new_processes() == []
    assert pool.run(ask, {}) == os.getpid()
    assert [worker.pid for worker in pool.workers()] == [None] * 3


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no fault 'tired'"):
        ScriptedLauncher(["tired"])


def test_the_census_names_what_is_new() -> None:
    before = Census()
    assert before.settled() == []
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, name="left-behind")
    thread.start()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with socket.socket() as sock:
        found = "\n".join(before.settled(within_s=0.0))
        assert re.search(r"thread left-behind, at .*threading", found, re.DOTALL)
        assert re.search(rf"process {process.pid}: .*input\(\)", found)
        assert f"file descriptor {sock.fileno()} -> socket:" in found
    go_on.set()
    process.communicate()
    assert before.settled() == []


def test_pools_have_names_of_their_own(make_pool: MakePool) -> None:
    first, second = (make_pool(workers=1, launcher=FakeLauncher()) for _ in range(2))
    assert first.name != second.name
    assert first.name.startswith("test_pools_have_names_of_their_own")
