"""Exceptions that a signal handler of the application raised in the middle of our code.

Python runs handlers between any two bytecodes of the main thread: also inside a `try` of ours whose `except Exception`
is meant for what a user's value, hook or program may raise. There a time limit by SIGALRM would be taken for the
value's fault, or be lost. So whoever catches everything of somebody else's calls let_through() first.

A handler's exception is known by its traceback: Python calls a handler with the signal's number and the frame that it
interrupted, which is also the frame before it in the traceback. No other function is called like that.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import traceback
from types import FrameType
from typing import Any


def let_through(error: BaseException) -> None:
    """Raise what a signal handler raised, where `error` is that or was made of it. Else nothing."""
    if threading.current_thread() is not threading.main_thread():
        return  # handlers run in the main thread alone
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # `raise error from error` makes a ring
        if _is_of_a_handler(cause):
            raise cause
        seen.add(id(cause))
        cause = cause.__cause__


def _is_of_a_handler(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(
        argument is interrupted
        for interrupted, frame in itertools.pairwise(frames)
        for argument in _number_and_frame(frame)
    )


def _number_and_frame(frame: FrameType) -> list[Any]:
    """What a frame's function was called with, where that may be a signal's number and a frame; else nothing."""
    code = frame.f_code
    named, more = code.co_varnames[: code.co_argcount], code.co_flags & inspect.CO_VARARGS
    variables = frame.f_locals
    values = [variables.get(name) for name in named]
    if more:
        rest = variables.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        values += rest if isinstance(rest, tuple) else ()
    # Not isinstance(), which asks a value's own __class__ too: that may raise.
    return values if any(issubclass(type(value), int) for value in values) else []
