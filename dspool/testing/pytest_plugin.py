"""Fixtures for tests with pools: each has its own pool with its own name, and leaves nothing behind.

In a conftest.py at the root of the tests:

    pytest_plugins = ["dspool.testing.pytest_plugin"]

then

    def test_answers(make_pool):
        pool = make_pool(workers=2, launcher=FakeLauncher(answer))      # open, named after the test
        assert pool.run(program, {"question": "why?"}) == "because"

    async def test_answers(make_async_pool):
        async with make_async_pool(workers=2) as pool: ...              # not open yet: it belongs to the loop

Fixtures:
    make_pool         makes and opens a Pool; closes it after the test
    make_async_pool   makes an AsyncPool, for `async with`; a test that leaves it open fails
    pool_name         gives a name that no other test has, for pools that are made by hand
    no_leaks          fails a test after which there is a process, file descriptor or thread that wasn't there before,
                      and says which; the other fixtures use it

What is left behind is given SETTLE_S to go by itself, and processes are killed, so that the next test starts clean.
"""

from __future__ import annotations

import gc
import itertools
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import dspool

__all__ = ["Census", "make_async_pool", "make_pool", "no_leaks", "pool_name"]

SETTLE_S = 2.0
_POLL_S = 0.01
# Threads that a library keeps for the next user, and which end by themselves.
_KEPT_THREADS = re.compile(r"Trio thread \d+|asyncio_\d+|pytest_timeout.*")

MakePool = Callable[..., dspool.Pool]
MakeAsyncPool = Callable[..., dspool.AsyncPool]


class Census:
    """What there is in this process now: file descriptors, descendants, threads."""

    def __init__(self) -> None:
        self.fds = _open_fds()
        self.processes = {(process.pid, process.create_time()) for process in _descendants()}
        self.threads = {thread.ident for thread in threading.enumerate()}

    def new(self) -> list[str]:
        """What is here now and wasn't then, one sentence each."""
        found = [f"process {_describe_process(process)}" for process in self.new_processes()]
        found += [f"thread {_describe_thread(thread)}" for thread in self.new_threads()]
        found += [
            f"file descriptor {fd} -> {target}" for fd, target in _open_fds().items() if self.fds.get(fd) != target
        ]
        return found

    def new_processes(self) -> list[psutil.Process]:
        """Descendants that weren't there."""
        return [process for process in _descendants() if (process.pid, process.create_time()) not in self.processes]

    def new_threads(self) -> list[threading.Thread]:
        """Threads that weren't there, without those that libraries keep."""
        return [
            thread
            for thread in threading.enumerate()
            if thread.ident not in self.threads and not _KEPT_THREADS.fullmatch(thread.name)
        ]

    def settled(self, within_s: float = SETTLE_S) -> list[str]:
        """What is still here that wasn't then, after everything had its time to end."""
        deadline = time.monotonic() + within_s
        while True:
            psutil.wait_procs(self.new_processes(), timeout=max(0.0, deadline - time.monotonic()))
            for thread in self.new_threads():
                thread.join(max(0.0, deadline - time.monotonic()))
            found = self.new()
            if not found:
                return []
            gc.collect()  # objects in cycles close what they hold only now
            if time.monotonic() >= deadline:
                return self.new()
            threading.Event().wait(_POLL_S)  # nobody tells that a file descriptor was closed


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if it leaves a process, a file descriptor or a thread behind."""
    before = Census()
    yield
    left = before.settled()
    for process in before.new_processes():
        process.kill()
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


_numbers = itertools.count(1)


@pytest.fixture
def pool_name(request: pytest.FixtureRequest) -> Callable[[], str]:
    """A function that gives a new name each time, with the test's own in it."""
    test = re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.name)[:48]
    return lambda: f"{test}-{next(_numbers)}"


@pytest.fixture
def make_pool(no_leaks: None, pool_name: Callable[[], str]) -> Iterator[MakePool]:
    """`make_pool(**options)`: a Pool, open, with a name of its own; closed after the test. `launcher=` is taken too."""
    pools: list[dspool.Pool] = []

    def make(**options: Any) -> dspool.Pool:
        pool = dspool.Pool(**{"name": pool_name(), **options})
        pools.append(pool)
        return pool.open()

    yield make
    for pool in reversed(pools):
        pool.close()


@pytest.fixture
def make_async_pool(no_leaks: None, pool_name: Callable[[], str]) -> Iterator[MakeAsyncPool]:
    """`make_async_pool(**options)`: an AsyncPool with a name of its own, not open; the test opens and closes it."""
    pools: list[dspool.AsyncPool] = []

    def make(**options: Any) -> dspool.AsyncPool:
        pool = dspool.AsyncPool(**{"name": pool_name(), **options})
        pools.append(pool)
        return pool

    yield make
    left_open = [repr(pool) for pool in pools if " not open" not in repr(pool) and " closed" not in repr(pool)]
    if left_open:
        pytest.fail(f"the test left open: {', '.join(left_open)}; use `async with`", pytrace=False)


def _open_fds() -> dict[int, str]:
    """Number -> what it is; empty where the system doesn't say."""
    found = {}
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except FileNotFoundError:
        return {}
    for fd in numbers:
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one that listed the folder
    return found


def _descendants() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True) if _has_children() else ():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _has_children() -> bool:
    """Whether this process has children at all: psutil looks at every process of the system to find them."""
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                if file.read():
                    return True
    except OSError:
        return True  # the system doesn't say, or a thread ended just now
    return False


def _describe_process(process: psutil.Process) -> str:
    try:
        return f"{process.pid}: {' '.join(process.cmdline())}"
    except psutil.Error:
        return str(process.pid)


def _describe_thread(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    where = "".join(traceback.format_stack(frame)[-2:]).strip() if frame is not None else "?"
    return f"{thread.name}, at {where}"
