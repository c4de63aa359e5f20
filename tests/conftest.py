"""What every test may use: the shipped fixtures, and quiet logs."""

from __future__ import annotations

import structlog

pytest_plugins = ["dspool.testing.pytest_plugin"]

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
