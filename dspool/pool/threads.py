"""Threads of the pool's own, where the system may refuse one."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dspool.errors import PoolError


def start_thread(thread: threading.Thread, pool: str, *, otherwise: Callable[[], None]) -> None:
    """Start a thread.

    Args:
        thread: the thread.
        pool: the pool's name, for the error.
        otherwise: called before the error is raised.

    Raises:
        PoolError: the system refuses it.
    """
    try:
        thread.start()
    except RuntimeError as error:
        otherwise()
        raise PoolError(
            f"pool {pool!r} gets no thread from the system ({error}): too many run already. Raise the limit of "
            "processes (ulimit -u, or the container's pids limit), or use fewer"
        ) from error
