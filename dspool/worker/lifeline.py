"""What a child does before anything else, whether it was spawned or forked.

Rules:
    1. The lifeline is armed first: from then on the process group dies with the manager's end of it, whatever it does.
    2. Nothing slow is imported here, and the environment is left as the manager made it (supervisor/launch.py): a
       default put back here would undo `env={"OMP_NUM_THREADS": None}`.

Knows neither frames nor programs.
"""

from __future__ import annotations

import faulthandler
import fcntl
import functools
import os
import select
import signal
import sys
import threading
from collections.abc import Collection
from typing import Any

from dspool.protocol.limits import DUMP_SIGNAL

_PR_SET_CHILD_SUBREAPER = 36
_IGNORED_SIGNALS = {
    # Ctrl-C goes to the terminal's whole foreground group; ending workers is the manager's business.
    "SIGINT",
    # As in any Python: a write into a closed pipe is an exception, not an end.
    "SIGPIPE",
    "SIGXFSZ",
}


def begin_child(lifeline: int, dump: int | None, signals: Collection[int] | None = None) -> None:
    """Make this process a worker that can be killed and looked into at any moment.

    Args:
        lifeline: read end of a pipe that nobody writes to; when its other end closes, the process group is killed.
        dump: a regular file for stack dumps, None for none.
        signals: those whose dispositions may not be a worker's; None: any.
    """
    if os.getpgrp() != os.getpid():
        os.setsid()
    arm_lifeline(lifeline)
    reset_signals(signal.valid_signals() if signals is None else signals)
    if dump is not None:
        faulthandler.enable(file=dump, all_threads=True)
        faulthandler.register(DUMP_SIGNAL, file=dump, all_threads=True)
    reseed()


def arm_lifeline(lifeline: int) -> None:
    """Have the kernel kill this process group when the other end of `lifeline` closes.

    The race: 1. the manager dies; 2. its end closes, no signal is asked for yet; 3. we ask, and wait for ever for a
    hang-up that is past. Hence the poll afterwards.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    else:
        threading.Thread(target=_watch_lifeline, args=(lifeline,), name="lifeline", daemon=True).start()
    if has_ended(lifeline):
        os._exit(0)


def has_ended(lifeline: int) -> bool:
    """Whether the other end is closed."""
    poll = select.poll()
    poll.register(lifeline, 0)
    return bool(poll.poll(0))


def soften_lifeline(lifeline: int) -> None:
    """Have the end of an armed lifeline not kill the process group but let it go on, should it be stopped (SIGCONT).

    For a process that watches its lifeline itself, and has something to do when that ends.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGCONT)


def harden_lifeline(lifeline: int) -> None:
    """Have the end of a softened lifeline kill again. If it has ended before, nobody is killed: look afterwards."""
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)


def _watch_lifeline(lifeline: int) -> None:
    """Where the kernel can't send the signal: as good as it gets, since C code that holds the GIL holds this up."""
    while os.read(lifeline, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def reset_signals(signals: Collection[int]) -> None:
    """Default dispositions and an empty mask, whatever the parent had; SIGINT ignored."""
    for number in signals:
        wanted = signal.SIG_IGN if _name(number) in _IGNORED_SIGNALS else signal.SIG_DFL
        if signal.getsignal(number) not in (wanted, None):
            signal.signal(number, wanted)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans, where the system has that."""
    if sys.platform == "linux":
        libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@functools.cache
def libc() -> Any:
    """The C library."""
    import ctypes

    return ctypes.CDLL(None)


def _name(number: int) -> str:
    return number.name if isinstance(number, signal.Signals) else ""


def reseed() -> None:
    """Random numbers of its own for every child of a fork; a generator that isn't loaded yet seeds itself."""
    if random := sys.modules.get("random"):
        random.seed()
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
