"""How a worker's process exits: as Python does, with atexit handlers, but not later than EXIT_GRACE_S."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import threading
import time
from typing import NoReturn

from dspool.worker.lifeline import libc
from dspool.worker.stdio import flush_stdio

EXIT_GRACE_S = 1.0
"""How long atexit handlers, threads and children of a program may hold up the exit."""
EXIT_SOFTWARE = 70
"""A fault in the worker's own code (sysexits' EX_SOFTWARE)."""


def leave(code: int = 0) -> NoReturn:
    """Exit as Python does, with atexit handlers, but not later than EXIT_GRACE_S.

    What Python does after them, taking all objects apart, is left to the kernel: a forked worker would write to all
    the memory that it shares with its template, 50 MB and 100 ms for nothing, times the workers of the pool.
    """
    force_exit_later(code)
    for end in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):  # Python has printed it
            end()
    flush_stdio()
    libc().fflush(None)
    os._exit(code)


def force_exit_later(code: int = 0) -> None:
    """Exit in EXIT_GRACE_S, if nothing else has ended the process by then; at once where no thread can be had for it.

    A program may have taken all the threads there are, or have spoilt what `threading` needs for another.
    """

    def force_exit() -> None:
        time.sleep(EXIT_GRACE_S)
        os._exit(code)

    try:
        _thread.start_new_thread(force_exit, ())
    except RuntimeError:
        os._exit(code)


def exit_after_fault() -> NoReturn:
    """Exit at once, with the traceback of the exception that is being handled: a fault in the worker's own code."""
    import traceback

    try:
        traceback.print_exc()
        flush_stdio()
    finally:
        os._exit(EXIT_SOFTWARE)
