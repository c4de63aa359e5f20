"""Ctrl-C in the main thread, held back while the pool is in the middle of something.

Python raises KeyboardInterrupt between any two bytecodes of the main thread, also inside a locked step or a `finally`:
a slot or the whole table would be lost. So while the main thread is inside the pool, our handler only takes a note; it
raises in the waits, which are the only places that take time, and on the way out.

Rules:
    1. `enter` and `left` pair up and nest (a signal handler may call the pool while the pool waits). `depth` is taken
       down by the `finally` itself, before it calls left(): a signal handler of the application's own may raise as a
       function begins, and a depth that stays up would hold every later Ctrl-C back.
    2. Interrupts are raised only while `waiting`, and the handler ends the wait as it raises: a second Ctrl-C can't
       land in the cleaning up after the first.
    3. The handler is installed only where Python's own default handler stands, by the main thread, and taken out when
       the last pool closes. Whoever has a handler of their own keeps it.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _Guard:
    """State of the main thread; touched by it alone."""

    __slots__ = ("depth", "main", "pending", "tried", "waiting")

    def __init__(self) -> None:
        self.main = threading.main_thread().ident
        self.depth = 0
        self.waiting = False
        self.pending = False
        self.tried = False
        """install() was called on the main thread since the last uninstall()."""

    def install(self) -> None:
        """A pool was opened. Does something only on the main thread, where Python's default handler stands."""
        if threading.get_ident() != self.main:
            return
        self.tried = True
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _on_sigint)

    def uninstall(self) -> None:
        """The last pool was closed."""
        if threading.get_ident() != self.main:
            return
        self.tried = False
        if signal.getsignal(signal.SIGINT) is _on_sigint:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def enter(self) -> bool:
        """From here on interrupts are held back. Returns what left() wants back."""
        if not self.tried:
            self.install()
        waiting, self.waiting = self.waiting, False
        self.depth += 1
        return waiting

    def left(self, waiting: bool) -> None:
        """Undo the rest of enter(), after `depth -= 1`.

        Raises:
            KeyboardInterrupt: one was held back, and this was the outermost enter().
        """
        self.waiting = waiting
        if self.pending and (self.depth == 0 or waiting):
            self.pending = False
            self.waiting = False
            raise KeyboardInterrupt

    def begin_wait(self) -> None:
        """From here until `waiting` is False again an interrupt is raised at once, one that was held back included."""
        # In this order: an interrupt between the two lines is raised by the handler, one before by us.
        self.waiting = True
        if self.pending:
            self.pending = False
            self.waiting = False
            raise KeyboardInterrupt


guard = _Guard()


def guarded(function: Callable[P, T]) -> Callable[P, T]:
    """The function with interrupts held back until it is through, wherever the main thread calls it."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if (guard.depth and not guard.waiting) or threading.get_ident() != guard.main:
            return function(*args, **kwargs)
        held = guard.enter()
        try:
            return function(*args, **kwargs)
        finally:
            guard.depth -= 1
            guard.left(held)

    return run


def _in_forked_child() -> None:
    """The thread that forked is the child's main thread, and it is inside no call."""
    guard.main = threading.get_ident()
    guard.depth, guard.waiting, guard.pending = 0, False, False


def _on_sigint(signum: int, frame: FrameType | None) -> None:
    if guard.depth and not guard.waiting:
        guard.pending = True
        return
    guard.waiting = False
    raise KeyboardInterrupt


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
