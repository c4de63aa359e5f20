"""A pytest plugin: every DSPy module that a test makes is made by pool.wrap, over a pool of its own for each test.

    DSPOOL_SUITE_POOL=1      wrap; without it the tests run as they are
    DSPOOL_SUITE_OUTCOMES    a file that gets each test's outcome, as JSON

What drives other modules (Parallel, BestOfN, Refine) is left as it is, so that it drives wrapped ones. One worker with
one slot, since DSPy's scripted LMs answer in turn.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
import structlog
from dspy.primitives.module import ProgramMeta

import dspool

DRIVERS = ("Parallel", "BestOfN", "Refine")
_plain = ProgramMeta.__call__
_outcomes: dict[str, dict[str, str]] = {}


@pytest.fixture(autouse=True)
def pooled_modules(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test's pool, and the wrapping."""
    if os.environ.get("DSPOOL_SUITE_POOL") != "1":
        yield
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with dspool.Pool(workers=1, lazy=True, name="dspy-suite", timeout_s=60) as pool:

        def made(cls: Any, *args: Any, **kwargs: Any) -> Any:
            module = _plain(cls, *args, **kwargs)
            driver = issubclass(cls, tuple(getattr(dspy, name) for name in DRIVERS))
            return module if driver or sys._getframe(1).f_code.co_name == "_wrapper" else pool.wrap(module)

        monkeypatch.setattr(ProgramMeta, "__call__", made)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine; DSPy's own environment has a plugin for these."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def pytest_runtest_logreport(report: Any) -> None:
    """Keep the outcome; a test whose setup or end failed has failed."""
    known = _outcomes.get(report.nodeid)
    if known is None or known["outcome"] == "passed":
        why = str(report.longrepr).strip().splitlines()[-1] if report.longrepr else ""
        _outcomes[report.nodeid] = {"outcome": report.outcome, "why": why[:300]}


def pytest_sessionfinish() -> None:
    """Write them down."""
    Path(os.environ["DSPOOL_SUITE_OUTCOMES"]).write_text(json.dumps(_outcomes), encoding="utf-8")
