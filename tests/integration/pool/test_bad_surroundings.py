"""What is around the pool goes wrong: the clock jumps, a disk is full, the system refuses processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import dspool
from dspool.testing.pytest_plugin import MakePool
from tests.integration.pool.conftest import RunScript

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DEADLINE_S = 20.0
HOUR_S = 3600.0


def echo(**inputs: Any) -> Any:
    """A program."""
    return inputs


def pid() -> int:
    """Where it runs."""
    return os.getpid()


def wait_for(path: str) -> str:
    """Say where it waits, and wait there until it is let go on."""
    with open(path + ".begun", "w"):
        pass
    with open(path) as fifo:
        return fifo.read()


# --- a hook that never returns ----------------------------------------------------------------------------------------

NEVER_RETURNS = """
import json, sys, threading
import anyio, dspool
from dspool.testing.fake import FakeLauncher

begun = threading.Event()

def never(*_):
    begun.set()
    threading.Event().wait()

options = {sys.argv[2]: never, "workers": 1, "launcher": FakeLauncher(lambda call: call.inputs)}

def use():
    with dspool.Pool(**options) as pool:
        return list(pool.map(dict, [{"n": 1}], timeout_s=0.2, return_exceptions=True)), pool.stats()

async def use_async():
    async with dspool.AsyncPool(**options) as pool:
        rows = pool.map(dict, [{"n": 1}], timeout_s=0.2, return_exceptions=True)
        return [value async for value in rows], await pool.stats()

(answer,), stats = use() if sys.argv[1] == "pool" else anyio.run(use_async, backend=sys.argv[1])
told = answer if isinstance(answer, dict) else type(answer).__name__
print(json.dumps([begun.is_set(), told, stats.exits]), flush=True)
"""


@pytest.mark.parametrize("front", ["pool", "asyncio", "trio"])
@pytest.mark.parametrize(("hook", "answer"), [("on_event", {"n": 1}), ("check", "QueueTimeout")])
def test_a_hook_that_never_returns_holds_up_neither_close_nor_the_interpreters_end(
    script: RunScript, front: str, hook: str, answer: Any
) -> None:
    running = script(NEVER_RETURNS, front, hook)
    assert running.line() == [True, answer, {}]
    assert running.end() == 0, running.errors()


# --- a clock that jumps -----------------------------------------------------------------------------------------------


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Put every clock of the manager ahead."""
    real, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead[0])

    def by(seconds: float) -> None:
        ahead[0] += seconds

    return by


@pytest.mark.parametrize("start_method", ["template", "spawn"])
def test_a_jump_while_workers_are_idle_costs_none_of_them(
    make_pool: MakePool, jump: Callable[[float], None], start_method: str
) -> None:
    pool = make_pool(workers=2, start_method=start_method)
    pids = {worker.pid for worker in pool.workers()}
    pool.run(echo, {"value": 1}, session="s")
    for _ in range(3):
        jump(HOUR_S)
        pool._driver.tick()  # the control plane's own sleep knows nothing of the jump
        assert pool.run(echo, {"value": 2}) == {"value": 2}
    assert {worker.pid for worker in pool.workers()} == pids
    stats = pool.stats()
    assert (stats.exits, stats.calls_ok, stats.sessions, stats.idle) == ({}, 4, 0, 2)


def test_a_jump_in_the_middle_of_a_call_ends_it_once_and_what_waits_is_not_run(
    make_pool: MakePool, jump: Callable[[float], None], tmp_path: Any
) -> None:
    pool = make_pool(workers=1)
    path = str(tmp_path / "gate")
    os.mkfifo(path)
    ends: dict[str, Any] = {}

    def call(name: str, program: Any, inputs: dict[str, Any]) -> None:
        try:
            ends[name] = pool.run(program, inputs)
        except dspool.DspoolError as error:
            ends[name] = type(error).__name__

    running = threading.Thread(target=call, args=("running", wait_for, {"path": path}))
    running.start()
    while not os.path.exists(path + ".begun"):
        threading.Event().wait(0.001)  # nobody tells that a file was made
    waiting = threading.Thread(target=call, args=("waiting", pid, {}))
    waiting.start()
    while pool.stats().waiting < 1:
        threading.Event().wait(0.001)
    jump(HOUR_S)
    with open(path, "w") as fifo:
        fifo.write("let go")
    for thread in (running, waiting):
        thread.join(DEADLINE_S)
    assert ends == {"running": "let go", "waiting": "QueueTimeout"}
    assert pool.run(echo, {"value": 1}) == {"value": 1}
    assert pool.stats().leased == 0


# --- a disk that is full ----------------------------------------------------------------------------------------------

FULL_DISK = """
import ctypes, json, os, signal, sys
import structlog
import dspool

folder = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC_PRIVATE = 0x20000, 0x44000
if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None) \\
        or libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=16k"):
    print(json.dumps("no mounts here"), flush=True)
    sys.exit()
print(json.dumps("mounted"), flush=True)
said = []

def collect(logger, level, event):
    said.append(event["event"])
    raise structlog.DropEvent

structlog.configure(processors=[collect], wrapper_class=structlog.make_filtering_bound_logger(0))
log = folder + "/frames.jsonl"
with dspool.Pool(workers=2, debug_log=log) as pool:
    for number in range(200):
        assert pool.run(dict, {"number": number}) == {"number": number}
    stats = pool.stats()
    assert (stats.calls_ok, stats.exits) == (200, {})
print(json.dumps([[line for line in said if "debug log" in line], os.path.getsize(log)]), flush=True)
"""


def test_a_debug_log_on_a_full_disk_ends_and_says_so_once(script: RunScript, tmp_path: Any) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    running = script(FULL_DISK, str(folder))
    if running.line() != "mounted":
        pytest.skip("this process may not mount a file system")
    said, size = running.line()
    assert said == ["the debug log has ended: it can't be written"]
    assert 0 < size <= 16 * 1024
    assert running.end() == 0, running.errors()


FULL_LOGS = """
import json, os, signal
import structlog
import dspool

full = open("/dev/full", "w", buffering=1)
structlog.configure(logger_factory=structlog.PrintLoggerFactory(full), wrapper_class=structlog.BoundLogger)

def loud(**inputs):
    print("a line")
    return inputs

def pid():
    return os.getpid()

def on_event(event, fields):
    raise ValueError("this would be logged too")

with dspool.Pool(workers=2, on_event=on_event) as pool:
    for number in range(20):
        assert pool.run(loud, {"number": number}) == {"number": number}
        if number % 5 == 0:
            os.kill(pool.run(pid, {}), signal.SIGKILL)  # one that lives: a list may still hold one that is gone
    pool.wait_ready(timeout_s=20)
    print(json.dumps([pool.stats().calls_ok, pool.health().status]), flush=True)
os._exit(0)  # the stream itself can't be flushed
"""


def test_an_applications_log_on_a_full_disk_costs_no_call(script: RunScript) -> None:
    running = script(FULL_LOGS)
    assert running.line() == [24, "healthy"]
    assert running.end() == 0, running.errors()


# --- processes that the system refuses --------------------------------------------------------------------------------


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let the system refuse the manager processes, or no more."""
    popen, refused = subprocess.Popen, [False]

    def start(*arguments: Any, **more: Any) -> Any:
        if refused[0]:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return popen(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", start)

    def now(on: bool) -> None:
        refused[0] = on

    return now


@pytest.mark.parametrize("start_method", ["template", "spawn"])
def test_open_says_at_once_that_the_system_refuses_processes(
    make_pool: MakePool, refuse: Callable[[bool], None], start_method: str
) -> None:
    refuse(True)
    with pytest.raises(dspool.WorkerStartError, match=r"refuses another process.*Resource temporarily unavailable"):
        make_pool(workers=2, start_method=start_method)


def test_a_worker_that_cannot_be_replaced_now_is_replaced_later(
    make_pool: MakePool, refuse: Callable[[bool], None]
) -> None:
    seen = threading.Event()

    def on_event(event: str, fields: Any) -> None:
        report = fields.get("report")
        if event == "worker.lost" and report is not None and report.reason == "boot_error":
            seen.set()

    pool = make_pool(workers=2, start_method="spawn", max_restarts=100, on_event=on_event)
    victim = pool.run(pid, {})
    refuse(True)
    os.kill(victim, signal.SIGKILL)
    assert seen.wait(DEADLINE_S)
    assert pool.run(pid, {}) != victim  # the other worker goes on
    refuse(False)
    pool.wait_ready(timeout_s=DEADLINE_S)
    assert pool.health().status == "healthy"
