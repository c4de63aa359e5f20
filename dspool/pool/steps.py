"""What the data path's generators wait for, whoever drives them: threads by polling, tasks by awaiting.

A wait is (kind, what, deadline), answered True (it came) or False (the deadline did):

    (GRANT, lease_id, deadline)     until the lease is granted or refused
    (READ, pipe, deadline)          until the slot's pipe can be read
    (WRITE, pipe, deadline)         until it can be read or written
    (REPORT, worker_id, deadline)   until the worker's exit report is there
    (HOOK, call, deadline)          until the user's hook has answered; the answer is its verdict, or LATE
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final, Literal, TypeVar

GRANT: Final = "grant"
READ: Final = "read"
WRITE: Final = "write"
REPORT: Final = "report"
HOOK: Final = "hook"
LATE: Final = object()
"""What HOOK is answered where the deadline came before a verdict. Only who waited knows: uvloop's clock counts whole
milliseconds, so a wait of it may end before the deadline that we read."""
Wait = tuple[Literal["grant", "read", "write", "report", "hook"], Any, float]
T = TypeVar("T")
Steps = Generator[Wait, Any, T]
