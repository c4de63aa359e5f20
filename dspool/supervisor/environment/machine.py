"""What the machine and its limits allow, against the size that is asked for. No process is started for it."""

from __future__ import annotations

import math
import os
import platform
import resource
import sys
from pathlib import Path

import psutil

from dspool.options import usable_cores
from dspool.supervisor.environment.asked import Asked, Finding, counted, failed, good, megabytes, warning
from dspool.supervisor.launch import descriptors_needed
from dspool.supervisor.memory import cgroup_left, memory_left, memory_limit

TEMPLATE_BYTES = 75 * 2**20
"""Of a template with DSPy."""
FORKED_BYTES = 14 * 2**20
"""Of a forked worker's own, after some calls."""
SPAWNED_BYTES = 60 * 2**20
"""Of a spawned worker with DSPy."""
LITELLM_BYTES = 140 * 2**20
"""What litellm takes besides, in each process that imports it."""
PLAIN_BYTES = 20 * 2**20
"""Of a spawned worker without DSPy, and of a template; a forked one has a fifth of its own."""
MAX_IN_FLIGHT = 100
"""Requests that one DSPy LM object has under way at most, and so one process."""
CROWDED = 4
"""Workers for each core beyond which they are told of."""


def system(asked: Asked) -> Finding:
    """Linux is what is tested."""
    told = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform != "linux":
        return warning(
            f"{told}: only Linux is tested; workers are spawned, and what they leave behind when their manager is "
            "killed is not ended",
            "run on Linux what has to be reliable",
        )
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return warning(
            f"{told}: the kernel, or a container's filter, refuses pidfds ({error.strerror}); workers are spawned",
            "use Linux 5.4 or newer, and let the container use pidfd_open and pidfd_send_signal",
        )
    return good(told)


def descriptors(asked: Asked) -> Finding:
    """What the manager holds open for its workers, against RLIMIT_NOFILE."""
    workers, slots = asked.workers, asked.options.slots
    needed, (limit, _) = descriptors_needed(workers, slots), resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = "raise RLIMIT_NOFILE (ulimit -n), or use fewer workers or slots"
    size = f"{workers} workers of slots={slots}"
    if limit == resource.RLIM_INFINITY:
        return good(f"{size} need {needed:,} file descriptors, and there is no limit")
    if needed > limit:
        return failed(f"{size} need {needed:,} file descriptors, and this process may have {limit:,}", advice)
    held = _open_descriptors()
    # Each end of a worker's pipes is open here until the worker has it.
    starting = descriptors_needed(min(workers, asked.options.start_concurrency or 1), slots)
    if needed + starting + held > limit:
        return warning(
            f"{size} need {needed:,} file descriptors and {starting:,} more while they start; this process has "
            f"{held:,} open and may have {limit:,}",
            advice,
        )
    return good(f"{size} need {needed:,} file descriptors of {limit:,}")


def _open_descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # no Linux
        return 0


def memory(asked: Asked) -> Finding:
    """What so many workers take at least, against the machine's memory and the cgroup's limit."""
    workers, needed = asked.workers, memory_needed(asked)
    method = asked.options.start_method
    each = f"{counted(workers, 'worker')} take about {megabytes(needed)} ({method}), what programs load besides"
    limit, left = memory_limit(), memory_left()
    advice = "use fewer workers or more slots, or give the machine or the container more memory"
    if method == "spawn" and sys.platform == "linux":
        advice = f"start_method='template' shares memory between workers; or {advice}"
    if needed > limit:
        return failed(f"{each}; all there is are {megabytes(limit)}", advice)
    if needed > left:
        return warning(f"{each}; free are {megabytes(left)} of {megabytes(limit)}", advice)
    return good(f"{each}; free are {megabytes(left)} of {megabytes(limit)}")


def memory_needed(asked: Asked) -> int:
    """An estimate from measured sizes (docs/explanation/performance.md); programs and their data come on top."""
    litellm = LITELLM_BYTES if any("litellm" in kind.preload for kind in asked.kinds()) else 0
    if asked.options.start_method == "spawn":
        return asked.workers * ((SPAWNED_BYTES if asked.uses_dspy else PLAIN_BYTES) + litellm)
    templates = len(asked.kinds())
    if not asked.uses_dspy:
        return templates * (PLAIN_BYTES + litellm) + asked.workers * PLAIN_BYTES // 5
    return templates * (TEMPLATE_BYTES + litellm) + asked.workers * FORKED_BYTES


def processes(asked: Asked) -> Finding:
    """What so many workers take of RLIMIT_NPROC and of the cgroup's pids.max. Both count threads."""
    slots = asked.options.slots
    threads = 2 + (slots if slots > 1 else 0)
    templates = len(asked.kinds()) if asked.options.start_method == "template" else 0
    needed = asked.workers * threads + templates
    told = f"{counted(asked.workers, 'worker')} take {needed:,} processes and threads"
    for name, left in (("the cgroup's pids.max", _left_of_pids_max()), ("RLIMIT_NPROC", _left_of_nproc(needed))):
        if left is not None and needed > left:
            return failed(f"{told}, and {name} leaves {left:,}", f"raise {name}, or use fewer workers or slots")
    return good(told)


def _left_of_pids_max() -> int | None:
    return cgroup_left("pids", ("pids.max", "pids.current"), ("pids.max", "pids.current"))


def _left_of_nproc(needed: int) -> int | None:
    """What RLIMIT_NPROC leaves this user; None where it leaves enough, or doesn't count (for root)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit == resource.RLIM_INFINITY or os.geteuid() == 0:
        return None
    try:
        of_everybody = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return None
    if of_everybody + needed <= limit:  # and nobody had to be counted
        return None
    return max(0, limit - _threads_of_user(os.getuid()))


def _threads_of_user(uid: int) -> int:
    count = 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        uids = process.info["uids"]
        if uids is not None and uids.real == uid:
            count += process.info["num_threads"] or 0
    return count


def cores(asked: Asked) -> Finding:
    """Workers against the cores that this process may use."""
    workers, usable = asked.workers, usable_cores()
    told = f"{counted(workers, 'worker')} on {counted(usable, 'usable core')}"
    if workers > CROWDED * usable:
        calls = workers * asked.options.slots
        fewer = max(usable, math.ceil(calls / MAX_IN_FLIGHT))
        return warning(
            f"{told}: where their calls compute, they slow each other down",
            f"calls that wait for an LM need slots rather than workers: workers={fewer}, "
            f"slots={math.ceil(calls / fewer)} runs as many at a time",
        )
    return good(told)
