"""What must hold of a process that is forked again and again. Looked at before every fork.

Rules:
    1. It has one OS thread: a fork copies no other, but every lock that another holds.
    2. No event loop runs in it: children would share its selector, and believe to be inside it.
    3. It holds no file descriptor that children must not share: only the given ones, regular files and character
       devices. A connection that several children read from gives each of them the others' answers.

A broken rule is told as a sentence that names what breaks it. Knows nothing of who forks, and for whom.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Collection

_SHARED = (stat.S_ISREG, stat.S_ISCHR)


def broken_rule(own_fds: Collection[int]) -> str | None:
    """The rule that this process breaks, and what breaks it; None where it may fork.

    Args:
        own_fds: descriptors that its children close or take over.

    Raises:
        OSError: it can't be known now, for want of descriptors or memory, say.
    """
    return _broken_by_thread() or _broken_by_loop() or _broken_by_fd(own_fds)


def _broken_by_thread() -> str | None:
    tasks = {int(name) for name in os.listdir("/proc/self/task")}
    if len(tasks) == 1:
        return None
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    names = [known.get(task) or _name_of(task) for task in sorted(tasks - {os.getpid()})]
    return f"a process that is forked has one thread, and there runs {', '.join(map(repr, names))} besides"


def _name_of(task: int) -> str:
    """The name of a thread that Python didn't start."""
    try:
        with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:  # it ended meanwhile
        return str(task)


def _broken_by_loop() -> str | None:
    asyncio = sys.modules.get("asyncio")
    loop = asyncio._get_running_loop() if asyncio is not None else None
    return None if loop is None else f"a process that is forked runs no event loop, and there runs {loop!r}"


def _broken_by_fd(own_fds: Collection[int]) -> str | None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd in own_fds:
            continue
        try:
            mode = os.fstat(fd).st_mode
            if any(kind(mode) for kind in _SHARED):
                continue
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the one that listed the folder
            continue
        return (
            "a process that is forked holds no connection, pipe or folder that its children would share, and file"
            f" descriptor {fd} is {target}"
        )
    return None
