"""dspool's log lines on stderr: readable, and only warnings unless more is asked for."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

import click
import structlog

_LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


def show_logs(verbose: int) -> None:
    """Configure structlog for this process.

    Args:
        verbose: -1: errors alone; 0: warnings too; 1: what workers print too; 2 or more: everything.
    """
    level = _LEVELS[min(verbose + 1, len(_LEVELS) - 1)]
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, _line],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: _Stderr(),
        cache_logger_on_first_use=False,
    )


def _line(logger: Any, method: str, fields: MutableMapping[str, Any]) -> str:
    level, event, error = fields.pop("level", method), fields.pop("event", ""), fields.pop("exception", None)
    told = "".join(f" {name}={value}" for name, value in fields.items() if value is not None)
    return f"dspool: {level}: {event}{told}" + (f"\n{error}" if error else "")


class _Stderr:
    """Writes to sys.stderr as it is at that moment: a progress bar puts something else there while it is shown."""

    def msg(self, line: str) -> None:
        """One line."""
        click.echo(line, err=True)

    debug = info = warning = error = critical = exception = fatal = log = msg
