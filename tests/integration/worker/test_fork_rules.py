"""The rules of a process that is forked, each broken in turn, in a process of its own that has one thread."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BEGINNING = """
import asyncio, os, socket, threading
from dspool.worker.fork_rules import broken_rule
def tell(own=(0, 1, 2)):
    print(broken_rule(own))
"""


def said(source: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + source], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_process_that_keeps_the_rules_may_be_forked() -> None:
    source = """
tell()
files = [open(os.devnull), open("/dev/zero"), open(__import__("os").__file__)]
tell()
"""
    assert said(source) == ["None", "None"]


def test_a_thread_is_named_whoever_started_it() -> None:
    source = """
gate = threading.Event()
thread = threading.Thread(target=gate.wait, name="logging-worker", daemon=True)
thread.start()
tell()
gate.set()
thread.join()
while len(os.listdir("/proc/self/task")) > 1:
    pass
tell()
"""
    assert said(source) == [
        "a process that is forked has one thread, and there runs 'logging-worker' besides",
        "None",
    ]


def test_a_running_event_loop_is_named() -> None:
    source = """
async def main():
    tell(range(100))
asyncio.run(main())
tell()
"""
    first, second = said(source)
    assert first.startswith("a process that is forked runs no event loop, and there runs <_UnixSelectorEventLoop")
    assert second == "None"


def test_a_connection_a_pipe_and_a_folder_are_named() -> None:
    source = """
first, second = socket.socketpair()
tell()
tell({0, 1, 2, first.fileno(), second.fileno()})
first.close(), second.close()
pipe = os.pipe()
tell()
os.close(pipe[0]), os.close(pipe[1])
os.open("/", os.O_RDONLY)
tell()
"""
    lines = said(source)
    assert [line.rpartition(" is ")[2].partition(":")[0] for line in lines] == ["socket", "None", "pipe", "/"]
    assert all("would share" in line for line in (lines[0], lines[2], lines[3]))


def test_where_it_cannot_be_looked_at_it_is_not_said_to_be_sound() -> None:
    source = """
def refuse(path):
    raise FileNotFoundError(2, "No such file", path)
os.listdir = refuse
try:
    tell()
except OSError as error:
    print("refused:", error.filename)
"""
    assert said(source) == ["refused: /proc/self/task"]
