"""Faults of this room's own, in the log: the traceback as text, so that no renderer adds the frames' local variables.

Those hold the workers' environment and boot configuration, and with them the user's keys.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any


def log_fault(log: Any, event: str, error: BaseException) -> None:
    """One error line with the traceback. `log` is a structlog logger."""
    log.error(event, traceback="".join(traceback.format_exception(error)))


@contextlib.contextmanager
def faults_logged(log: Any, event: str) -> Iterator[None]:
    """Go on after the block, whatever it raises."""
    try:
        yield
    except Exception as error:
        log_fault(log, event, error)
