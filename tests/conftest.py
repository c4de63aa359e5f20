"""What every test may use: the shipped fixtures, and quiet logs."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import structlog

from dspool.supervisor import life

pytest_plugins = ["dspool.testing.pytest_plugin"]

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Our own options."""
    parser.addoption(
        "--every-pair", action="store_true", help="run each contract test with every pool over every kind of worker"
    )


@pytest.fixture
def patient_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump is waited for, however busy the machine is: in 10 ms a process may not have its turn, or lose it."""
    monkeypatch.setattr(life, "DUMP_WAIT_S", 10.0)
    monkeypatch.setattr(life, "BOOT_DUMP_WAIT_S", 10.0)
    monkeypatch.setattr(life, "DUMP_QUIET_MS", 200)


@pytest.fixture(scope="session")
def dspy() -> Any:
    """DSPy, imported before a test's leaks are counted: it keeps descriptors. Its progress bars start no thread."""
    import dspy

    importlib.import_module("tqdm").tqdm.monitor_interval = 0
    return dspy
