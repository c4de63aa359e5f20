"""A meeting of workers: how to know that N of them are ready, whoever started them.

Each of N calls holds its worker until all N are there, so N calls need N workers. It works for every pool that runs a
function, and nothing is polled: the N-th connection is the instant at which N workers were ready.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contestants import threads
from benchmarks.contestants.programs import attend


def meet(call: Callable[[Any, Any], Any], workers: int, timeout_s: float) -> tuple[list[int], float]:
    """Have `workers` calls meet.

    Args:
        call: runs a program with a value in some worker; called from `workers` threads.
        workers: how many are wanted.
        timeout_s: how long to wait for all of them.

    Returns:
        Their pids, and time.perf_counter() when the last one came.

    Raises:
        TimeoutError: fewer came.
    """
    deadline = time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = str(Path(folder) / "meeting")
        listener.bind(address)
        listener.listen(workers)
        guests: list[socket.socket] = []
        pids: list[int] = []
        calls = [threads.start(partial(call, attend, address), "meeting") for _ in range(workers)]
        try:
            while len(guests) < workers:
                for ended in (one for one in calls if one.done() and one.exception() is not None):
                    ended.result()
                listener.settimeout(max(0.001, min(1.0, deadline - time.monotonic())))
                try:
                    guest, _ = listener.accept()
                except TimeoutError:
                    if time.monotonic() < deadline:
                        continue
                    raise TimeoutError(f"{len(guests)} of {workers} workers were ready in {timeout_s:g} s") from None
                guests.append(guest)
                pids.append(int.from_bytes(guest.recv(4), "big"))
            met = time.perf_counter()
        finally:
            for guest in guests:
                guest.close()
            listener.close()
        threads.results(calls, timeout_s)
    if len(set(pids)) < workers:
        raise RuntimeError(f"{workers} calls met in {len(set(pids))} processes")
    return pids, met
