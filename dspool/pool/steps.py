"""What the data path's generators wait for, whoever drives them: threads by polling, tasks by awaiting.

A wait is (kind, what, deadline), answered True (it came) or False (the deadline did):

    (GRANT, lease_id, deadline)     until the lease is granted or refused
    (READ, pipe, deadline)          until the slot's pipe can be read
    (WRITE, pipe, deadline)         until it can be read or written
    (REPORT, worker_id, deadline)   until the worker's exit report is there
    (HOOK, call, deadline)          until the user's hook has answered; the answer is its verdict, or LATE
    (PIECE, event, deadline)        until the caller wants the next piece of a stream; this is the one that it gets now

PIECE is no wait of a driver's: until_piece() ends there, and its caller goes on with the same steps when it likes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final, Literal, TypeVar

GRANT: Final = "grant"
READ: Final = "read"
WRITE: Final = "write"
REPORT: Final = "report"
HOOK: Final = "hook"
PIECE: Final = "piece"
LATE: Final = object()
"""What HOOK is answered where the deadline came before a verdict. Only who waited knows: uvloop's clock counts whole
milliseconds, so a wait of it may end before the deadline that we read."""
Wait = tuple[Literal["grant", "read", "write", "report", "hook", "piece"], Any, float]
T = TypeVar("T")
Steps = Generator[Wait, Any, T]


def until_piece(steps: Steps[T]) -> Steps[tuple[Any, T | None]]:
    """The part of a stream's steps up to its next piece: (event, None), or (None, what the steps return) at their end.

    What is thrown into a wait goes on into the steps, which are over then.
    """
    try:
        wait = next(steps)
        while wait[0] is not PIECE:
            try:
                came = yield wait
            except BaseException as error:
                wait = steps.throw(error)
            else:
                wait = steps.send(came)
    except StopIteration as stop:
        return None, stop.value
    return wait[1], None
