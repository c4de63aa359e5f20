"""Programs that never come back, each in its own way; what they are is told at the door before they begin.

A door is a socket's path (`witness.Door`). Every process of a program says its number there and keeps the connection,
so that whoever listens can watch it die.
"""

from __future__ import annotations

import collections
import ctypes
import importlib
import itertools
import os
import signal
import socket
import time
from typing import NoReturn

DOOR = "DSPOOL_CHAOS_DOOR"
"""The variable that names the door to programs that get no inputs."""

_kept: list[socket.socket] = []


def arrive(door: str) -> None:
    """Say this process's number at the door."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(door)
    sock.sendall(f"{os.getpid()}\n".encode())
    _kept.append(sock)


def sleeps(door: str) -> NoReturn:
    """Wait, as for an answer that never comes."""
    arrive(door)
    wait_for_ever()


def spins(door: str) -> NoReturn:
    """Compute in Python."""
    arrive(door)
    number = 0
    while True:
        number += 1


def holds_gil_asleep(door: str) -> None:
    """Wait in a C call that holds the interpreter's lock. A read goes on after a signal's handler."""
    reader, _ = os.pipe()
    arrive(door)
    ctypes.PyDLL(None).read(reader, ctypes.create_string_buffer(1), 1)


def holds_gil_busy(door: str) -> None:
    """Compute in a C call that holds the interpreter's lock."""
    arrive(door)
    collections.deque(itertools.repeat(0), maxlen=0)


def stops(door: str) -> NoReturn:
    """Be stopped, as by a debugger or a shell."""
    arrive(door)
    os.kill(os.getpid(), signal.SIGSTOP)
    wait_for_ever()


def ignores_signals(door: str) -> NoReturn:
    """Ignore every signal that can be ignored."""
    ignore_signals()
    arrive(door)
    wait_for_ever()


def imports(door: str) -> None:
    """Import a module whose import never ends."""
    os.environ[DOOR] = door
    importlib.import_module("tests.chaos.blocked")


def has_descendants(door: str) -> NoReturn:
    """Start a child that starts another; both are deaf to signals."""
    if not os.fork():
        ignore_signals()
        os.fork()
    arrive(door)
    wait_for_ever()


def has_daemon(door: str) -> NoReturn:
    """Start a child that makes another one a daemon, which is no child, group or session of anyone's any more."""
    if not os.fork():
        ignore_signals()
        if os.fork():
            os._exit(0)
        os.setsid()
    arrive(door)
    wait_for_ever()


def wait_for_ever() -> NoReturn:
    """Sleep, again and again."""
    while True:
        time.sleep(3600)


def ignore_signals() -> None:
    """From now on only SIGKILL and SIGSTOP do anything to this process, crashes aside."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
