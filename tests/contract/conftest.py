"""The contract suite's parameters: every test runs with each kind of pool over each kind of worker.

pool-fake      Pool in threads, driven from tests on asyncio
asyncio-fake   AsyncPool on asyncio
trio-fake      AsyncPool on trio
...-scripted   the same over real processes that speak the pipe without dspy
...-real       the same over real workers
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Iterator

import anyio
import pytest

from tests.contract.backends import Backend, FakeBackend, RealBackend, ScriptedBackend
from tests.contract.subject import World

BACKENDS: dict[str, type[Backend]] = {"fake": FakeBackend, "scripted": ScriptedBackend, "real": RealBackend}
FRONTS = ("pool", "asyncio", "trio")


def pytest_configure(config: pytest.Config) -> None:
    """Say what our marks mean."""
    config.addinivalue_line("markers", "only(*names): run a contract test with these fronts or workers only")
    config.addinivalue_line("markers", "narrow: over all fronts with fakes, over one front with one kind of process")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `world`: everything, less what the test's marks leave out.

    What the core decides alone is the same over any worker, so those tests are `narrow`: each runs over one pair of
    front and process, chosen by its name, so that together they cover all pairs.
    """
    if "world" not in metafunc.fixturenames:
        return
    only = {name for mark in metafunc.definition.iter_markers("only") for name in mark.args}
    cases = [(front, backend) for backend in BACKENDS for front in FRONTS]
    cases = [(front, backend) for front, backend in cases if not only & set(BACKENDS) or backend in only]
    cases = [(front, backend) for front, backend in cases if not only & set(FRONTS) or front in only]
    if next(metafunc.definition.iter_markers("narrow"), None) is not None:
        processes = [case for case in cases if case[1] != "fake"]
        chosen = processes[zlib.crc32(metafunc.definition.name.encode()) % len(processes)] if processes else None
        cases = [case for case in cases if case[1] == "fake" or case == chosen]
    process_marks = [pytest.mark.integration, pytest.mark.slow]
    metafunc.parametrize(
        "world",
        [pytest.param(case, id="-".join(case), marks=[] if case[1] == "fake" else process_marks) for case in cases],
        indirect=True,
    )


@pytest.fixture
def world(request: pytest.FixtureRequest, no_leaks: None, pool_name: Callable[[], str]) -> Iterator[World]:
    """Makes pools of one kind over workers of one kind."""
    front, backend = request.param
    with BACKENDS[backend]() as workers:
        yield World(front, workers, pool_name)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on the loop that its world says."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    world = arguments.get("world")
    backend = "trio" if isinstance(world, World) and world.front == "trio" else "asyncio"
    anyio.run(functools.partial(pyfuncitem.obj, **arguments), backend=backend)
    return True
