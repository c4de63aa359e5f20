"""What every test may use: the shipped fixtures, and quiet logs."""

from __future__ import annotations

import pytest
import structlog

pytest_plugins = ["dspool.testing.pytest_plugin"]

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Our own options."""
    parser.addoption(
        "--every-pair", action="store_true", help="run each contract test with every pool over every kind of worker"
    )
