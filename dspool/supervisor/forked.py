"""What a process that the application forks must not keep open: the manager's ends of the workers' pipes.

A lifeline ends its worker when its last write end closes. The race that this file is about:

    1. the application forks a process of its own (multiprocessing, a pre-forking server); it inherits every lifeline;
    2. the manager is killed;
    3. the kernel closes the manager's ends, but the bystander's copies live on: no worker is told, all are orphans.

So every end is registered here while it is open, and a forked child closes its copies first thing. Programs that are
started by exec need none of this: all ends are close-on-exec.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Iterator

_lock = threading.RLock()
_fds: set[int] = set()
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


@contextlib.contextmanager
def creating() -> Iterator[None]:
    """Hold forks back while ends are made and registered, else a fork in between would keep the unregistered ones."""
    with _lock:
        yield


def guard_fd(fd: int) -> int:
    """Register an open descriptor; close it with close_fd()."""
    _fds.add(fd)
    return fd


def guard_socket(sock: socket.socket) -> socket.socket:
    """Register a socket for as long as the object lives; closing or detaching it needs no word here."""
    _sockets.add(sock)
    return sock


def close_fd(fd: int) -> None:
    """Close a registered descriptor. A fork between the two steps would keep an unregistered one: it is held back."""
    with _lock:
        _fds.discard(fd)
        os.close(fd)


def _before_fork() -> None:
    _lock.acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    for sock in list(_sockets):
        sock.close()
    for fd in _fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    _fds.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
