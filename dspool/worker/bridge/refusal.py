"""A request that is refused: what a command raises, and what its client is told."""

from __future__ import annotations

from typing import Any

from dspool.protocol.messages import ErrorInfo


class Refused(Exception):
    """A command is not carried out, and nothing was changed by it.

    Args:
        code: what is wrong, a word of reference.CODES.
        message: the same for people; it shows names and sizes, never values.
        details: the same as data.
    """

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.info = ErrorInfo(code, message, details=details)
