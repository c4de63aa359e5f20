"""Programs may use 0, 1 and 2 as they like: frames never go there."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.worker.conftest import Spawn

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MEGABYTE = 2**20


def test_a_megabyte_on_fd_1_is_no_frame(spawn: Spawn) -> None:
    def flood(count: int) -> int:
        data = b"\xff" * count
        written = 0
        while written < count:
            written += os.write(1, data[written:])
        return written

    worker = spawn()
    worker.slot.create(flood)
    worker.slot.start({"count": MEGABYTE})
    assert worker.read_output(MEGABYTE) == b"\xff" * MEGABYTE
    assert worker.slot.receive().result == {"value": MEGABYTE}


def test_what_c_code_prints_is_no_frame(spawn: Spawn) -> None:
    def program() -> None:
        libc = ctypes.CDLL(None)
        libc.printf(b"from C\n")
        libc.fflush(None)

    worker = spawn()
    assert worker.slot.run(program).success
    assert worker.read_output(7) == b"from C\n"


def test_prints_come_line_by_line(spawn: Spawn) -> None:
    worker = spawn()
    worker.slot.run(lambda: print("\N{SNOWMAN}\udcff") or print("no line yet", end=""))
    assert worker.read_output(10).decode() == "\N{SNOWMAN}\\udcff\n"


def test_a_reader_who_is_gone_is_no_error_of_the_program(spawn: Spawn) -> None:
    def program() -> int:
        print("x" * 100_000)
        sys.stdout.buffer.write(b"y" * 100_000)
        sys.stdout.flush()
        return 1

    worker = spawn()
    with open(os.devnull) as nobody:
        os.dup2(nobody.fileno(), worker.output)
    assert worker.slot.run(program).result == {"value": 1}
    assert worker.slot.execute().result == {"value": 1}


def test_there_is_nothing_to_read(spawn: Spawn) -> None:
    worker = spawn()
    assert worker.slot.run(lambda: [sys.stdin.read(), os.read(0, 10)]).result == {"value": ["", b""]}
