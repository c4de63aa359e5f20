"""Every test here runs on asyncio, uvloop and trio, unless it says otherwise, and leaks nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import psutil
import pytest

from tests.integration.supervisor.harness import BACKENDS


@pytest.fixture(params=list(BACKENDS.values()), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _warm_backends() -> None:
    """What a backend opens once for the whole process (libuv's signal pipe) is no leak of a test."""
    for backend, backend_options in BACKENDS.values():
        anyio.run(anyio.sleep, 0, backend=backend, backend_options=backend_options)


def open_fds() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # The one that listed the folder.
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Fails a test that leaves a descriptor, a child process (zombies too) or a thread."""
    fds, threads = open_fds(), set(threading.enumerate())
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    gc.collect()
    assert {child for child in psutil.Process().children(recursive=True) if child.pid not in children} == set()
    # anyio's test runner drives trio from a thread of trio's cache.
    started = {thread.name for thread in threading.enumerate() if thread not in threads}
    assert {name for name in started if not name.startswith("Trio thread")} == set()
    assert {fd: target for fd, target in open_fds().items() if fd not in fds} == {}
