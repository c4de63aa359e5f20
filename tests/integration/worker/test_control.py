"""The control pipe, while calls run, and the ways in which a worker ends."""

from __future__ import annotations

import atexit
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.worker.conftest import Driven, Spawn

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def wait_for(path: str) -> str:
    """Comes back when somebody opens the other end of the fifo `path`."""
    print("waiting", flush=True)
    with open(path) as file:
        return file.read()


def spin(path: str) -> str:
    """Keeps Python busy until `path` exists."""
    print("waiting", flush=True)
    while not os.path.exists(path):
        pass
    return "done"


def say_bye() -> None:
    atexit.register(print, "bye", flush=True)


def busy_with(worker: Driven, program: Any, path: Path) -> None:
    """Have slot 0 run `program`, and come back when it does."""
    assert worker.slot.create(program).success
    worker.slot.start({"path": str(path)})
    assert worker.read_output(8) == b"waiting\n"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_a_ping_tells_what_each_slot_does(spawn: Spawn, fifo: Path) -> None:
    worker = spawn(slots=3)
    worker.slots[2].sock.close()
    busy_with(worker, wait_for, fifo)
    pong = worker.control.ask("ping", {"initialization": True}).result
    while pong["slots"][2]["state"] != "closed":
        pong = worker.control.ask("ping").result
    assert [slot["state"] for slot in pong["slots"]] == ["busy", "idle", "closed"]
    assert [slot["request_id"] for slot in pong["slots"]] == [2, None, None]
    assert 0 <= pong["slots"][0]["since_s"] <= pong["uptime"]
    assert (pong["status"], pong["worker_id"], pong["programs"]) == ("ok", 7, 1)
    assert pong["pid"] == worker.process.pid
    fifo.write_text("x")
    assert worker.slot.receive().result == {"value": "x"}


def test_pings_are_answered_while_python_is_busy(spawn: Spawn, tmp_path: Path) -> None:
    worker = spawn()
    busy_with(worker, spin, tmp_path / "stop")
    for _ in range(5):
        assert worker.control.ask("ping").result["slots"][0]["state"] == "busy"
    (tmp_path / "stop").touch()
    assert worker.slot.receive().result == {"value": "done"}


def test_a_dump_shows_where_every_thread_is(spawn: Spawn, fifo: Path) -> None:
    worker = spawn()
    busy_with(worker, wait_for, fifo)
    stacks = worker.control.ask("dump").result["stacks"]
    assert "Thread MainThread" in stacks
    assert "Thread control" in stacks
    assert "in wait_for" in stacks
    fifo.write_text("x")
    assert worker.slot.receive().success


def test_stats(spawn: Spawn) -> None:
    worker = spawn()
    worker.slot.run(lambda: 1)
    worker.slot.execute({}, "nobody")
    stats = worker.control.ask("get_stats").result
    assert (stats["command_count"], stats["error_count"], stats["programs_count"]) == (3, 1, 1)
    assert stats["memory_usage"]["rss"] > 2**20
    assert 0 < stats["memory_usage"]["percent"] < 100
    assert stats["dspy_version"].startswith("3.4.")
    assert stats["protocol_version"] == 1


@pytest.mark.parametrize("pipe", ["control", "slot"])
def test_an_unknown_command_is_refused(spawn: Spawn, pipe: str) -> None:
    channel = getattr(spawn(), pipe)
    info = channel.error_of(channel.ask("dance"))
    assert (info.code, info.message) == ("unknown_command", "Unknown command: dance")


@pytest.mark.parametrize("slots", [1, 2])
def test_shutdown_of_an_idle_worker_runs_atexit_handlers(spawn: Spawn, slots: int) -> None:
    worker = spawn(slots=slots)
    worker.slot.run(say_bye)
    assert worker.control.ask("shutdown").result == {"status": "shutdown_complete"}
    assert worker.exit_code() == 0
    assert worker.read_output(4) == b"bye\n"


@pytest.mark.parametrize("slots", [1, 2])
def test_shutdown_lets_the_running_call_be_answered(spawn: Spawn, fifo: Path, slots: int) -> None:
    worker = spawn(slots=slots)
    busy_with(worker, wait_for, fifo)
    assert worker.control.ask("shutdown").success
    with pytest.raises(BrokenPipeError):
        worker.slot.start()
    fifo.write_text("x")
    assert worker.slot.receive().result == {"value": "x"}
    assert worker.exit_code() == 0


def test_half_a_request_at_shutdown_is_no_broken_frame(spawn: Spawn) -> None:
    worker = spawn()
    worker.slot.sock.sendall(b"\0\0\0\x10half")
    assert worker.control.ask("shutdown").success
    assert worker.exit_code() == 0


def test_what_a_program_left_behind_does_not_hold_up_the_exit(spawn: Spawn) -> None:
    def program() -> None:
        child = subprocess.Popen(["sleep", "600"])
        atexit.register(child.wait)
        threading.Thread(target=threading.Event().wait).start()

    worker = spawn()
    assert worker.slot.run(program).success
    began = time.monotonic()
    assert worker.control.ask("shutdown").success
    assert worker.exit_code() == 0
    assert time.monotonic() - began < 5


def test_the_control_pipes_end_ends_a_busy_worker(spawn: Spawn, fifo: Path) -> None:
    worker = spawn()
    busy_with(worker, wait_for, fifo)
    worker.control.sock.close()
    assert worker.exit_code() == 0


def test_the_end_of_its_slots_leaves_a_worker_waiting_for_the_control_pipe(spawn: Spawn) -> None:
    worker = spawn()
    worker.slot.sock.close()
    while worker.control.ask("ping").result["slots"][0]["state"] != "closed":
        pass
    assert worker.control.ask("shutdown").success
    assert worker.exit_code() == 0
