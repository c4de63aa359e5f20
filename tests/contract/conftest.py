"""The contract suite's parameters: each test runs with each kind of pool over each kind of worker.

    pool-fake      Pool in threads, driven from tests on asyncio
    asyncio-fake   AsyncPool on asyncio
    trio-fake      AsyncPool on trio
    ...-scripted   the same over real processes that speak the pipe without dspy
    ...-real       the same over real workers, forked from a template
    ...-spawned    the same over real workers, spawned

All twelve pairs with `--every-pair`. Without it a test runs over fakes with every front, and over each kind of process
with one front, chosen by the test's name; so that together the tests go through all pairs, in a tenth of the time. How
a real worker was started makes no difference to most, so only some tests run over spawned ones too. What the core
decides alone is the same over any worker: those tests, marked `narrow`, run over one kind of process only.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Iterator

import anyio
import pytest

from tests.contract.backends import Backend, FakeBackend, RealBackend, ScriptedBackend, SpawnedBackend
from tests.contract.subject import World

BACKENDS: dict[str, type[Backend]] = {
    "fake": FakeBackend,
    "scripted": ScriptedBackend,
    "real": RealBackend,
    "spawned": SpawnedBackend,
}
FRONTS = ("pool", "asyncio", "trio")
ONE_IN_SPAWNED = 6
"""Of so many tests one runs over spawned workers too."""


def pytest_configure(config: pytest.Config) -> None:
    """Say what our marks mean."""
    config.addinivalue_line("markers", "only(*names): run a contract test with these fronts or workers only")
    config.addinivalue_line("markers", "every_front: over each kind of process with all fronts")
    config.addinivalue_line("markers", "narrow: over all fronts with fakes, over one front with one kind of process")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `world`: all pairs, less what the test's marks and the command line leave out."""
    if "world" not in metafunc.fixturenames:
        return
    only = {name for mark in metafunc.definition.iter_markers("only") for name in mark.args}
    if "real" in only:
        only.add("spawned")
    backends = [name for name in BACKENDS if not only & set(BACKENDS) or name in only]
    fronts = [name for name in FRONTS if not only & set(FRONTS) or name in only]
    cases = [(front, backend) for backend in backends for front in fronts]
    every_front = next(metafunc.definition.iter_markers("every_front"), None) is not None
    if every_front:
        cases = [(front, backend) for front, backend in cases if backend != "spawned"]
    elif not metafunc.config.getoption("every_pair"):
        chance = zlib.crc32(metafunc.definition.name.encode())
        spawned = chance // 64 % ONE_IN_SPAWNED == 0
        processes = [backend for backend in backends if backend != "fake" and (spawned or backend != "spawned")]
        if processes and next(metafunc.definition.iter_markers("narrow"), None) is not None:
            processes = [processes[chance // 8 % len(processes)]]
        chosen = {(fronts[(chance + number) % len(fronts)], backend) for number, backend in enumerate(processes)}
        cases = [case for case in cases if case[1] == "fake" or case in chosen]
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
