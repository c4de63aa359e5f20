"""CPython's own tests of executors, run against dspool.Executor.

    python -m tests.cpython            a table of what passed, and why the rest doesn't apply; exit 1 where one that is
                                       listed as passing did not
    python -m tests.cpython --json     the outcomes as one line of JSON

The tests come from the interpreter's own test package (test.test_concurrent_futures), which some distributions leave
out; there is nothing to run then, and the exit code is 2. They are not copied: the mixin that says which executor is
tested is replaced, and in the tests' modules the names of errors that are ours here (SUBSTITUTES).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import pkgutil
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from pickle import PicklingError
from types import ModuleType
from typing import Any

import structlog

import dspool
from tests.cpython.listed import DOES_NOT_APPLY, PASSES

ROOT = Path(__file__).parents[2]
PACKAGE = "test.test_concurrent_futures"
SUITES = (
    "ExecutorTest",
    "ProcessPoolExecutorTest",
    "ExecutorShutdownTest",
    "ProcessPoolShutdownTest",
    "WaitTests",
    "AsCompletedTests",
    "ExecutorDeadlockTest",
    "InitializerMixin",
    "FailingInitializerMixin",
)
SUBSTITUTES: dict[str, Any] = {
    # A worker's death is the end of its own call, and what can't be unpickled in it is a failed call.
    "BrokenProcessPool": (dspool.WorkerLost, dspool.ProgramError),
    # A call that can't be pickled is an EncodeError, from whatever the pickling raised.
    "PicklingError": (PicklingError, dspool.EncodeError),
}


class TestedExecutor(dspool.Executor):
    """The executor under test: it takes what ProcessPoolExecutor's tests pass, and gives back what they expect."""

    def __init__(self, max_workers: int | None = None, *, mp_context: Any = None, **options: Any) -> None:
        super().__init__(max_workers, unpickle_results=True, **options)


def modules() -> list[ModuleType]:
    """The modules of the interpreter's tests: one up to Python 3.11, a package since. None: it has none."""
    try:
        found = importlib.import_module(PACKAGE)
    except ModuleNotFoundError:
        return []
    inside = pkgutil.iter_modules(getattr(found, "__path__", ()))
    return [found, *(importlib.import_module(f"{PACKAGE}.{each.name}") for each in inside)]


def suites(sources: list[ModuleType]) -> Iterator[type[unittest.TestCase]]:
    """The tests' classes, over our executor."""
    names = {name: value for source in sources for name, value in vars(source).items()}

    base: Any = names["ExecutorMixin"]

    class Mixin(base):
        executor_type = TestedExecutor

        def get_context(self) -> None:
            return None

        @contextlib.contextmanager
        def _assert_logged(self, message: str) -> Iterator[None]:
            yield  # a failing initializer is in the error, and in dspool's own log

    for name in SUITES:
        if name in names:
            yield type(name, (Mixin, names[name], names["BaseTestCase"]), {})


def in_their_place(sources: list[ModuleType]) -> None:
    """Put ours in the place of the standard's names, in the tests' modules alone."""
    for source in sources:
        for name, substitute in SUBSTITUTES.items():
            if name in vars(source):
                setattr(source, name, substitute)
        if "assert_python_ok" in vars(source):
            source.assert_python_ok = with_our_executor(source.assert_python_ok)  # type: ignore[attr-defined]


def with_our_executor(run_script: Any) -> Any:
    """The tests' scripts import the executor by its class's name from the standard library; ours is elsewhere."""
    theirs = "from concurrent.futures import TestedExecutor"
    ours = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import structlog; "  # the scripts run isolated
        "structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50)); "
        "from dspool import Executor as TestedExecutor"
    )

    def run(*arguments: str) -> Any:
        return run_script(*(argument.replace(theirs, ours) for argument in arguments))

    return run


class Outcomes(unittest.TextTestResult):
    """Keeps each test's outcome and, where it failed, why."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.found: dict[str, str] = {}

    def _keep(self, test: Any, outcome: str) -> None:
        if isinstance(test, unittest.TestCase):
            name = ".".join(test.id().split(".")[-2:])
            self.found[name] = outcome if self.found.get(name, "passed") == "passed" else self.found[name]

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self._keep(test, "passed")

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._keep(test, f"failed: {err[0].__name__}: {err[1]}")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._keep(test, f"failed: {err[0].__name__}: {err[1]}")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._keep(test, f"skipped: {reason}")


def run(only: tuple[str, ...] = ()) -> dict[str, str] | None:
    """Each test's outcome by name; None where the interpreter has no tests.

    Args:
        only: parts of names; where there are any, no other test is run.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    sources = modules()
    if not sources:
        return None
    in_their_place(sources)
    importlib.import_module("test.support").verbose = 0  # type: ignore[attr-defined]
    tests = unittest.TestSuite()
    for suite in suites(sources):
        for name in unittest.defaultTestLoader.getTestCaseNames(suite):
            full = f"{suite.__name__}.{name}"
            if full not in DOES_NOT_APPLY and (not only or any(part in full for part in only)):
                tests.addTest(suite(name))
    result = Outcomes(unittest.runner._WritelnDecorator(io.StringIO()), descriptions=False, verbosity=0)
    tests.run(result)
    return result.found


def main(arguments: list[str]) -> int:
    """Run them and say what came of it."""
    found = run(tuple(argument for argument in arguments if not argument.startswith("-")))
    if "--json" in arguments:
        print(json.dumps(found))
        return 0
    if found is None:
        print(f"Python {sys.version.split()[0]} at {sys.executable} has no {PACKAGE}: nothing to run")
        return 2
    for name, outcome in found.items():
        print(f"ok   {name}" if outcome == "passed" else f"     {name:60} {outcome}")
    for name, reason in DOES_NOT_APPLY.items():
        print(f"  -  {name:60} {reason}")
    print(f"{sum(outcome == 'passed' for outcome in found.values())} of {len(found)} passed")
    return int(any(outcome.startswith("failed") for name, outcome in found.items() if name in PASSES))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
