"""The manager is killed: nothing of it lives on."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.integration.supervisor.harness import BACKENDS, HERE, ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PATIENCE_S = 30.0


class Managed:
    """A manager in a process of its own, and pidfds of everything it started."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "manager.py"), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        self.pidfds: list[tuple[str, int]] = []
        for line in self.process.stdout:
            name, pid = line.split()
            if name == "manager":
                break
            self.pidfds.append((name, os.pidfd_open(int(pid))))

    def alive(self, within_s: float) -> list[str]:
        """The processes that are alive after that time; returns as soon as there are none but bystanders."""
        deadline = time.monotonic() + within_s
        left = [entry for entry in self.pidfds if entry[0] != "bystander"]
        while left and time.monotonic() < deadline:
            select.select([fd for _, fd in left], [], [], max(0.0, deadline - time.monotonic()))
            left = [entry for entry in left if not select.select([entry[1]], [], [], 0)[0]]
        return [name for name, fd in self.pidfds if not select.select([fd], [], [], 0)[0]]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        for _, fd in self.pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            select.select([fd], [], [], PATIENCE_S)
            os.close(fd)


@pytest.fixture
def manager(request: pytest.FixtureRequest) -> Iterator[Managed]:
    managed = Managed(*request.param)
    yield managed
    managed.close()


EVERYTHING = ["grandchild", "idle", "spinning", "holding", "starting", "starting"]


@pytest.mark.parametrize("manager", [[name] for name in BACKENDS], indirect=True, ids=list(BACKENDS))
def test_a_second_after_the_manager_is_killed_nothing_is_alive(manager: Managed) -> None:
    assert manager.alive(0.0) == EVERYTHING
    manager.process.kill()
    # One that is being started looks at its lifeline when its interpreter is up, however long that takes.
    assert set(manager.alive(1.0)) <= {"starting"}
    assert manager.alive(PATIENCE_S) == []


@pytest.mark.parametrize("manager", [["asyncio"]], indirect=True)
def test_nothing_is_alive_after_the_manager_is_interrupted(manager: Managed) -> None:
    manager.process.send_signal(signal.SIGINT)
    assert manager.process.wait(PATIENCE_S) != 0
    assert manager.alive(0.0) == []


@pytest.mark.parametrize("manager", [["asyncio", "fork"]], indirect=True)
def test_a_process_that_the_application_forked_keeps_no_worker_alive(manager: Managed) -> None:
    assert manager.alive(0.0) == [*EVERYTHING, "bystander"]
    manager.process.kill()
    assert manager.alive(PATIENCE_S) == ["bystander"]
