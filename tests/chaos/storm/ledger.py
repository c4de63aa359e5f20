"""The callee's ledger: what was executed, written by those who executed it.

Each worker appends to a file of its own, opened with O_APPEND, in one write a line. A SIGKILL can't take back what a
write has handed to the kernel, so the ledger of a worker that was killed says all that was begun in it. It is imported
in workers: nothing here but the standard library.
"""

from __future__ import annotations

import os
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

BEGUN, ENDED = "+", "-"
_fds: dict[tuple[int, str], int] = {}


def perform(folder: str, call_id: int, sent: bytes, wanted: int, pause_s: float) -> dict[str, Any]:
    """The program that is called: notes that it begins, before anything else, and that it ends, before it answers.

    Args:
        folder: where the ledger is.
        call_id: which call this is.
        sent: anything; its checksum comes back.
        wanted: how many bytes are to come back.
        pause_s: how long it takes.
    """
    _note(folder, BEGUN, call_id)
    answer = {"call_id": call_id, "checksum": zlib.crc32(sent), "filler": filler(call_id, wanted)}
    time.sleep(pause_s)
    _note(folder, ENDED, call_id)
    return answer


def filler(call_id: int, size: int) -> bytes:
    """So many bytes that only this call has."""
    unit = b"%d/" % call_id
    return (unit * (size // len(unit) + 1))[:size]


def read(folder: Path) -> tuple[Counter[int], Counter[int]]:
    """How often each call began, and how often each came to its end."""
    begun: Counter[int] = Counter()
    ended: Counter[int] = Counter()
    for path in folder.iterdir():
        for line in path.read_text("ascii").splitlines():
            (begun if line[0] == BEGUN else ended)[int(line[1:])] += 1
    return begun, ended


def _note(folder: str, what: str, call_id: int) -> None:
    key = os.getpid(), folder
    if key not in _fds:
        # A number may come twice in a long run: the earlier process's lines stay.
        _fds[key] = os.open(f"{folder}/{key[0]}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_fds[key], f"{what}{call_id}\n".encode())
