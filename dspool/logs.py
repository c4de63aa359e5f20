"""Where dspool's log lines go: the application's structlog where it is configured, else the standard library's logging.

structlog unconfigured prints every level to stdout, which a library must not do to a program that never asked for it.
Through logging only warnings are seen by default, on stderr, and `logging.getLogger("dspool")` turns it up or down.

A log that can't be written, because its disk is full, say, costs no call and no worker: its lines are lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import structlog

from dspool.signals import let_through

_PROCESSORS: list[Any] = [
    structlog.stdlib.filter_by_level,
    structlog.processors.format_exc_info,
    structlog.processors.KeyValueRenderer(key_order=["event", "pool", "worker_id"]),
]


class Log:
    """A structlog logger whose methods never raise."""

    __slots__ = ("_logger",)

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def bind(self, **fields: Any) -> Log:
        """The same with more fields."""
        return Log(self._logger.bind(**fields))

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self._write(level, event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        try:
            getattr(self._logger, level)(event, **fields)
        except Exception as error:  # it has no place to say so
            let_through(error)


def get_logger(name: str, **fields: Any) -> Log:
    """A logger with these fields bound; looked up when it is made, so after the application's set-up."""
    if structlog.is_configured():
        return Log(structlog.get_logger(name).bind(**fields))
    plain = structlog.wrap_logger(
        logging.getLogger(name), processors=_PROCESSORS, wrapper_class=structlog.stdlib.BoundLogger
    )
    return Log(plain.bind(**fields))
