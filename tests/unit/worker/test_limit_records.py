"""The file that a pool's workers share, seen from several processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspool.worker import limit_records
from dspool.worker.limit_records import DIGEST_BYTES, Busy, LimitRecords
from dspool.worker.pacing import State

pytestmark = pytest.mark.unit

HOLDER = """
import sys
from dspool.worker.limit_records import LimitRecords
def step(state):
    print("held", flush=True)
    sys.stdin.readline()
    return None, state._replace(tokens_each=7.0)
LimitRecords(sys.argv[1]).change(b"m" * 16, step)
print("done", flush=True)
"""
COUNTER = """
import sys
from dspool.worker.limit_records import Busy, LimitRecords
file, left = LimitRecords(sys.argv[1]), 500
while left:
    try:
        file.change(b"m" * 16, lambda state: (None, state._replace(tokens_each=state.tokens_each + 1)))
        left -= 1
    except Busy:
        pass
"""


def digest(number: int) -> bytes:
    """A model's."""
    return number.to_bytes(DIGEST_BYTES, "big")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The file, empty."""
    (tmp_path / "limits").touch()
    return str(tmp_path / "limits")


@pytest.fixture
def holder(path: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of a change."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_what_one_writes_others_read(path: str) -> None:
    file = LimitRecords(path)
    assert file.peek(digest(1)) == State()
    state = State(1.5, 2.5, 3.5, 4.5, 5.5)
    assert file.change(digest(1), lambda before: (before, state)) == State()
    assert file.change(digest(2), lambda before: (before, State(9.0))) == State()
    assert LimitRecords(path).peek(digest(1)) == state
    assert LimitRecords(path).peek(digest(2)) == State(9.0)
    assert LimitRecords(path).peek(digest(3)) == State()


def test_a_step_that_raises_changes_nothing_and_leaves_no_lock(path: str) -> None:
    file = LimitRecords(path)

    def fail(state: State) -> tuple[None, State]:
        raise LookupError

    with pytest.raises(LookupError):
        file.change(digest(1), fail)
    assert os.path.getsize(path) == 0
    file.change(digest(1), lambda state: (None, State(1.0)))


def test_the_record_that_holds_nobody_back_makes_room(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_records, "MAX_RECORDS", 4)
    file = LimitRecords(path)
    states = [
        State(requests_paid_at=90.0, touched_at=5.0),
        State(not_before=300.0, touched_at=1.0),  # a provider's pause, of which nobody has heard for longest
        State(tokens_paid_at=90.0, touched_at=4.0),
        State(requests_paid_at=95.0, touched_at=2.0),
    ]
    for number, state in enumerate(states):
        file.change(digest(number), lambda _, state=state: (None, state))  # type: ignore[misc]
    size = os.path.getsize(path)
    file.change(digest(8), lambda state: (state, State(100.0, touched_at=9.0)))
    file.change(digest(9), lambda state: (state, State(100.0, touched_at=9.0)))
    assert os.path.getsize(path) == size
    left = [file.peek(digest(number)) for number in range(4)]
    assert left == [State(), states[1], State(), states[3]]
    assert file.peek(digest(8)) == file.peek(digest(9)) == State(100.0, touched_at=9.0)


def test_a_digest_within_other_records_is_not_found_there(path: str) -> None:
    file = LimitRecords(path)
    file.change(digest(1), lambda state: (None, State()))
    assert file.peek(digest(1)[1:] + b"\0") == State()
    file.change(digest(256), lambda state: (None, State(5.0)))
    assert [file.peek(digest(number)).requests_paid_at for number in (1, 256)] == [0.0, 5.0]


def test_whoever_meets_anothers_lock_is_told_and_may_look_meanwhile(path: str, holder: subprocess.Popen[str]) -> None:
    file = LimitRecords(path)
    with pytest.raises(Busy):
        file.change(b"m" * 16, lambda state: (None, state))
    assert file.peek(b"m" * 16) == State()
    assert holder.communicate("go on\n", timeout=10)[0] == "done\n"
    assert file.change(b"m" * 16, lambda state: (state, state)).tokens_each == 7.0


def test_a_kill_in_the_middle_of_a_change_leaves_no_lock_and_no_change(
    path: str, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGSTOP)  # while it is stopped nobody waits for it either
    with pytest.raises(Busy):
        LimitRecords(path).change(b"m" * 16, lambda state: (None, state))
    holder.kill()
    holder.wait(10)
    assert LimitRecords(path).change(b"m" * 16, lambda state: (state, state)) == State()


def test_changes_of_several_processes_and_threads_are_all_there(path: str) -> None:
    counters = [subprocess.Popen([sys.executable, "-c", COUNTER, path]) for _ in range(3)]
    assert [counter.wait(60) for counter in counters] == [0, 0, 0]
    assert LimitRecords(path).peek(b"m" * 16).tokens_each == 1500.0


def test_a_child_that_is_forked_in_the_middle_of_a_change_waits_for_nobody(path: str) -> None:
    file = LimitRecords(path)

    def fork(state: State) -> tuple[int, State]:
        if (pid := os.fork()) == 0:
            try:
                file.change(b"m" * 16, lambda state: (None, state))
            except Busy:
                os._exit(3)  # the lock is its parent's, and that of the threads has come to it unlocked
            os._exit(1)
        pidfd = os.pidfd_open(pid)
        if not select.select([pidfd], [], [], 20)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), state

    assert file.change(b"m" * 16, fork) == 3
