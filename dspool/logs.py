"""Where dspool's log lines go: the application's structlog where it is configured, else the standard library's logging.

structlog unconfigured prints every level to stdout, which a library must not do to a program that never asked for it.
Through logging only warnings are seen by default, on stderr, and `logging.getLogger("dspool")` turns it up or down.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

_PROCESSORS: list[Any] = [
    structlog.stdlib.filter_by_level,
    structlog.processors.format_exc_info,
    structlog.processors.KeyValueRenderer(key_order=["event", "pool", "worker_id"]),
]


def get_logger(name: str, **fields: Any) -> Any:
    """A structlog logger with these fields bound; looked up when it is made, so after the application's set-up."""
    if structlog.is_configured():
        return structlog.get_logger(name).bind(**fields)
    plain = structlog.wrap_logger(
        logging.getLogger(name), processors=_PROCESSORS, wrapper_class=structlog.stdlib.BoundLogger
    )
    return plain.bind(**fields)
