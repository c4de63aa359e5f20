"""CPU time and memory of other processes, from outside.

CPU time comes from each process's own clock, which Linux lets anybody read to the nanosecond and which counts threads
that have ended. `/proc/PID/stat` counts in ticks of 10 ms: a round of calls is often shorter than that.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

import psutil

_WHOLE_PROCESS = 2  # CPUCLOCK_SCHED of the kernel's posix-timers.h, without its bit for a single thread


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that these processes have used so far, their kernel time included; what has ended counts nothing."""
    total = 0.0
    for pid in pids:
        with suppress(OSError, psutil.Error):
            if sys.platform == "linux":
                total += time.clock_gettime((~pid << 3) | _WHOLE_PROCESS)
            else:
                times = psutil.Process(pid).cpu_times()
                total += times.user + times.system
    return total


def own_cpu_s() -> float:
    """CPU seconds of this process."""
    return time.process_time()


def descendants() -> set[int]:
    """The pids of this process's children, and theirs."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def memory_mb(pids: Iterable[int]) -> tuple[list[float], list[float]]:
    """Private and proportional memory of each process, in MB (10**6 bytes).

    Private is what would come free if the process ended; proportional counts a page that n processes share as 1/n of
    one. Where the kernel doesn't tell the proportional size it is the resident one.
    """
    private, proportional = [], []
    for pid in pids:
        memory = psutil.Process(pid).memory_full_info()
        private.append(memory.uss / 1e6)
        proportional.append(getattr(memory, "pss", memory.rss) / 1e6)
    return private, proportional


def usable_cores() -> list[int]:
    """The cores this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0))
