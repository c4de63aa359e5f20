"""Pools and the processes around them: forks, exits, scripts, interpreters."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import dspool
from dspool.testing.pytest_plugin import MakePool
from tests.integration.pool.conftest import RunScript, Script

pytestmark = [pytest.mark.integration, pytest.mark.slow]

AllEnd = Callable[[list[int]], None]

BYSTANDER = """
import json, os, sys
import dspool
from dspool.testing.scripted import ScriptedLauncher, behave

pool = dspool.Pool(workers=2, launcher=ScriptedLauncher()).open()
lease = pool.checkout()

def say(what):  # in one write: two processes say something here, and print() may write the line's end by itself
    os.write(1, json.dumps(what).encode() + b"\\n")

workers = [worker.pid for worker in pool.workers()]
bystander = os.fork()
if bystander == 0:
    said = []
    for use in (lambda: pool.run(behave, {}), pool.checkout, pool.stats, pool.pause, lambda: lease.run(behave, {})):
        try:
            use()
        except Exception as error:
            said.append(type(error).__name__)
    pool.close()
    say({"bystander": os.getpid(), "said": said})
    sys.stdin.read()
    os._exit(0)
say({"workers": workers, "value": lease.run(behave, {"value": 1})})
sys.stdin.read()
"""


def test_a_forked_bystander_keeps_no_worker_alive_and_cannot_use_the_pool(script: RunScript, all_end: AllEnd) -> None:
    manager = script(BYSTANDER)
    said = {}
    for _ in range(2):
        said.update(manager.line())
    assert said["said"] == ["PoolClosed"] * 5
    assert said["value"] == 1
    bystander = psutil.Process(said["bystander"])
    manager.process.kill()
    all_end(said["workers"])
    assert bystander.is_running()
    bystander.kill()
    all_end([bystander.pid])


STREAMED = """
import json, os
import dspool

def count(end):
    yield from range(end)

pool = dspool.Pool(workers=1).open()
stream = pool.stream(count, {"end": 4})
next(stream)
reader, writer = os.pipe()
bystander = os.fork()
if bystander == 0:
    try:
        next(stream)
    except BaseException as error:
        os.write(writer, type(error).__name__.encode())
    stream.close()
    os._exit(0)
os.waitpid(bystander, 0)
print(json.dumps([os.read(reader, 100).decode(), list(stream)]), flush=True)
pool.close()
"""


def test_a_forked_bystander_cannot_go_on_with_a_stream(script: RunScript) -> None:
    assert script(STREAMED).line() == ["PoolClosed", [1, 2, 3]]


LEFT_OPEN = """
import json, sys, threading, time
import dspool
from dspool.testing.scripted import ScriptedLauncher, behave

pool = dspool.Pool(workers=2, launcher=ScriptedLauncher()).open()
threading.Thread(target=pool.run, args=(behave, {"do": "sleep", "seconds": 60}), daemon=True).start()
while not pool.stats().leased:
    pass
print(json.dumps([worker.pid for worker in pool.workers()]), flush=True)
"""


def test_a_pool_left_open_ends_with_the_interpreter(script: RunScript, all_end: AllEnd) -> None:
    manager = script(LEFT_OPEN)
    workers = manager.line()
    begun = time.monotonic()
    assert manager.end() == 0, manager.errors()
    assert time.monotonic() - begun < 5
    all_end(workers)


UNREFERENCED = """
import gc, json, warnings
import dspool
from dspool.testing.scripted import ScriptedLauncher

with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    pool = dspool.Pool(workers=1, launcher=ScriptedLauncher()).open()
    over = pool._control.driver.over
    del pool
    gc.collect()
    print(json.dumps([over.wait(20), [str(each.message) for each in seen]]), flush=True)
"""


def test_a_pool_nobody_closed_warns_and_ends_its_workers(script: RunScript) -> None:
    manager = script(UNREFERENCED)
    over, warnings = manager.line()
    assert over
    assert len(warnings) == 1
    assert "was never closed; its workers are killed" in warnings[0]
    assert manager.end() == 0, manager.errors()


STRICT = """
import asyncio, gc, json, sys, warnings
import dspool
from dspool.testing.scripted import ScriptedLauncher

warnings.simplefilter("error")
kind = sys.argv[1]

def collected():
    pool = dspool.Pool(workers=1, launcher=ScriptedLauncher()).open()
    return [worker.pid for worker in pool.workers()]

async def collected_async():
    pool = await dspool.AsyncPool(workers=1, launcher=ScriptedLauncher()).open()
    pids = [worker.pid for worker in await pool.workers()]
    del pool
    gc.collect()
    print(json.dumps(pids), flush=True)
    await asyncio.to_thread(sys.stdin.read)

if kind == "threads":
    pids = collected()
    gc.collect()
    print(json.dumps(pids), flush=True)
    sys.stdin.read()
else:
    asyncio.run(collected_async())
"""


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_a_pool_nobody_closed_ends_its_workers_also_where_warnings_are_errors(
    script: RunScript, all_end: AllEnd, kind: str
) -> None:
    manager = script(STRICT, kind)
    all_end(manager.line())  # while the manager lives on
    assert manager.end() == 0
    assert "was never closed" in manager.errors()


LOOP_ENDED = """
import asyncio, json, sys, warnings
import anyio, dspool
from dspool.testing.scripted import ScriptedLauncher, behave

warnings.simplefilter("always")
left, backend = sys.argv[1:]
kept = []

async def main():
    options = {"lazy": {"lazy": True}, "starting": {"min_ready": 0}}.get(left, {})
    pool = await dspool.AsyncPool(name="left", workers=2, launcher=ScriptedLauncher(), **options).open()
    kept.append(pool)
    if left == "lease":
        kept.append(await pool.checkout())
    if left == "map":
        kept.append(pool.map(behave, [{"value": 1}] * 9))
        await anext(kept[-1])
    if left == "call":
        kept.append(asyncio.create_task(pool.run(behave, {"do": "sleep", "seconds": 60})))
        while not (await pool.stats()).leased:
            await asyncio.sleep(0)
    return [worker.pid for worker in await pool.workers() if worker.pid]

print(json.dumps(anyio.run(main, backend=backend)), flush=True)
kept.clear()
"""


@pytest.mark.parametrize(
    ("left", "backend"),
    [(left, "asyncio") for left in ("idle", "lazy", "starting", "lease", "map", "call")]
    + [(left, "trio") for left in ("idle", "lazy", "starting", "lease", "map")],
)
def test_an_async_pool_left_open_when_its_loop_ends_is_told_of_and_nothing_else_is(
    script: RunScript, all_end: AllEnd, left: str, backend: str
) -> None:
    manager = script(LOOP_ENDED, left, backend)
    all_end(manager.line())
    assert manager.end() == 0
    said = [line for line in manager.errors().splitlines() if not line.startswith(" ")]
    said.remove("ResourceWarning: Enable tracemalloc to get the object allocation traceback")
    assert len(said) == 1, said
    assert "ResourceWarning: async pool 'left' was never closed; its workers were killed" in said[0]
    assert "Use `async with`, or await close()" in said[0]


CLOSED_LOOP = """
import asyncio, gc, json, sys, warnings
import dspool
from dspool.testing.scripted import ScriptedLauncher

async def main():
    pool = await dspool.AsyncPool(name="left", workers=2, launcher=ScriptedLauncher()).open()
    return pool, [worker.pid for worker in await pool.workers()]

loop = asyncio.new_event_loop()
pool, pids = loop.run_until_complete(main())
loop.close()
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    del pool
    gc.collect()
    print(json.dumps([pids, [str(each.message) for each in seen]]), flush=True)
sys.stdin.read()
"""


def test_an_async_pool_whose_loop_was_closed_kills_its_workers_when_it_is_collected(
    script: RunScript, all_end: AllEnd
) -> None:
    manager = script(CLOSED_LOOP)
    pids, warnings = manager.line()
    all_end(pids)  # while the manager lives on
    assert len(warnings) == 1
    assert "async pool 'left' was never closed; its workers are killed" in warnings[0]
    assert manager.end() == 0
    assert manager.errors() == ""


def test_workers_die_with_a_killed_manager(script: RunScript, all_end: AllEnd) -> None:
    manager = script(LEFT_OPEN + "sys.stdin.read()\n")
    workers = manager.line()
    manager.process.send_signal(signal.SIGKILL)
    all_end(workers)


NO_WORKER = """
import json, sys
import dspool

pool = dspool.Pool(workers=2, python=sys.argv[1], min_ready=0).open()
started = pool._control.supervisor._workers
while len(pids := [worker.pid for worker in list(started.values()) if worker.pid]) < 2:
    pass
print(json.dumps(pids), flush=True)
sys.stdin.read()
"""


def test_what_never_becomes_a_worker_dies_with_a_killed_manager(
    script: RunScript, all_end: AllEnd, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    python.chmod(0o755)
    manager = script(NO_WORKER, str(python))
    pids = manager.line()
    manager.process.kill()
    all_end(pids)


TWO_POOLS = """
import json, os, sys
import dspool

first = dspool.Pool(name="same", workers=2, start_method=sys.argv[1]).open()
second = dspool.Pool(name="same", workers=2, start_method=sys.argv[1]).open()
for line in sys.stdin:
    if line.strip() == "close the first":
        first.close()
    pools = [pool for pool in (first, second) if pool.health().status != "unhealthy"]
    found = [[pool.run(os.getpid, {}) > 0, [worker.pid for worker in pool.workers()]] for pool in pools]
    print(json.dumps(found), flush=True)
"""


@pytest.mark.parametrize("start_method", ["template", "spawn"])
def test_neither_pools_nor_managers_touch_each_others_processes(
    script: RunScript, all_end: AllEnd, start_method: str
) -> None:
    killed, other = script(TWO_POOLS, start_method), script(TWO_POOLS, start_method)

    def ask(manager: Script, what: str = "") -> list[Any]:
        assert manager.process.stdin is not None
        manager.process.stdin.write(f"{what}\n")
        found: list[Any] = manager.line()
        return found

    (_, first), (_, second) = before = ask(other)
    gone = [pid for _, pids in ask(killed) for pid in pids]
    assert len({*first, *second, *gone}) == 8
    killed.process.kill()
    all_end(gone)
    assert ask(other) == before
    assert ask(other, "close the first") == [[True, second]]
    all_end(first)


IDLE = """
import anyio, json, os, sys
import dspool

async def main():
    async with dspool.AsyncPool(workers=1, start_method="spawn") as pool:
        [worker] = await pool.workers()
        print(json.dumps(worker.pid), flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        print(json.dumps(await pool.run(os.getpid, {})), flush=True)

anyio.run(main)
"""
IDLE_S = 15.0


def test_a_spawned_worker_is_alive_after_fifteen_idle_seconds(script: RunScript) -> None:
    manager = script(IDLE)
    pid = manager.line()
    pidfd = os.pidfd_open(pid)
    try:
        died, _, _ = select.select([pidfd], [], [], IDLE_S)
    finally:
        os.close(pidfd)
    assert not died
    assert manager.process.stdin is not None
    manager.process.stdin.write("\n")
    assert manager.line() == pid


MAIN_PROGRAMS = """
import dataclasses, enum, json
import dspool

GREETING = "hello"

class Colour(enum.Enum):
    RED = "red"

@dataclasses.dataclass
class Greeter:
    greeting: str

    def __call__(self, name):
        return self.greet(name)

    def greet(self, name):
        return f"{self.greeting}, {name} {Colour.RED.value}"

def greet(name):
    return Greeter(GREETING)(name)

with dspool.Pool(workers=1) as pool:
    found = [
        pool.run(greet, {"name": "function"}),
        pool.run(Greeter("hi"), {"name": "object"}),
        pool.run(Greeter("hey").greet, {"name": "method"}),
        pool.run(lambda name: greet(name), {"name": "lambda"}),
    ]
print(json.dumps(found), flush=True)
"""


def test_what_main_defines_travels_by_value_without_a_guard(script: RunScript) -> None:
    process = script(MAIN_PROGRAMS)
    assert process.line() == ["hello, function red", "hi, object red", "hey, method red", "hello, lambda red"]
    assert process.end() == 0, process.errors()


def test_a_program_in_a_file_beside_the_script(script: RunScript, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "app" / "programs.py").write_text("def double(number):\n    return 2 * number\n", encoding="utf-8")
    source = (
        "import json\nimport dspool, programs\n"
        "with dspool.Pool(workers=1) as pool:\n"
        "    found = [pool.run(program, {'number': 4}) for program in (programs.double, 'programs:double')]\n"
        "print(json.dumps(found), flush=True)\n"
    )
    process = script(source, path=tmp_path / "app" / "main.py", cwd=tmp_path / "elsewhere")
    assert process.line() == [8, 8]
    assert process.end() == 0, process.errors()


def test_a_wrong_python_is_a_start_error(make_pool: MakePool, tmp_path: Path) -> None:
    with pytest.raises(dspool.WorkerStartError, match="Python executable not found: /no/such/python"):
        make_pool(workers=1, python="/no/such/python")
    not_python = tmp_path / "python"
    not_python.write_text("#!/bin/sh\necho this is no Python >&2\nexit 4\n", encoding="utf-8")
    not_python.chmod(0o755)
    with pytest.raises(dspool.WorkerStartError, match=r"exit code 4.*this is no Python"):
        make_pool(workers=1, python=not_python)


def test_a_worker_whose_dspy_import_fails_says_so_at_once(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dspy").mkdir()
    (tmp_path / "dspy" / "__init__.py").write_text("import no_such_dependency\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    begun = time.monotonic()
    with pytest.raises(dspool.WorkerStartError, match="No module named 'no_such_dependency'") as caught:
        make_pool(workers=2, preload="dspy", start_timeout_s=60)
    assert time.monotonic() - begun < 10
    assert caught.value.remote_traceback is not None
    assert "import no_such_dependency" in caught.value.remote_traceback
    assert caught.value.report is not None
    assert caught.value.report.reason == "boot_error"


OPENS_A_POOL = """
import dspool
pool = dspool.Pool(workers=1).open()
def double(n): return 2 * n
"""


def double_in_a_pool(n: int) -> Any:
    """Opens a pool when it is called."""
    with dspool.Pool(workers=1, start_method="spawn") as pool:
        return pool.run(lambda n: 2 * n, {"n": n})


@pytest.mark.parametrize("start_method", ["template", "spawn"])
def test_a_preload_that_can_not_be_imported_is_told_as_such(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    (tmp_path / "imports_another.py").write_text("import no_such_module\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(dspool.WorkerStartError, match="the import of 'imports_another' for preload="):
        make_pool(workers=1, start_method=start_method, preload=["imports_another"])


@pytest.mark.parametrize("start_method", ["template", "spawn"])
def test_a_module_that_opens_a_pool_as_it_is_imported_makes_no_chain_of_pools(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    (tmp_path / "opens_a_pool.py").write_text(OPENS_A_POOL, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    told = "the module 'opens_a_pool' opens a pool where it is imported"
    pool = make_pool(workers=1, start_method=start_method)
    with pytest.raises(dspool.ProgramError, match=told) as caught:
        pool.run("opens_a_pool:double", {"n": 1})
    assert caught.value.code == "load_error"
    with pytest.raises(dspool.WorkerStartError, match=told):
        make_pool(workers=1, start_method=start_method, preload=["opens_a_pool"])
    assert pool.run(double_in_a_pool, {"n": 2}) == 4


def test_env_reaches_the_workers_and_none_removes_a_variable(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPOOL_TEST_REMOVED", "1")
    pool = make_pool(workers=1, env={"DSPOOL_TEST_ADDED": "yes", "DSPOOL_TEST_REMOVED": None})
    assert pool.run(os.getenv, {"key": "DSPOOL_TEST_ADDED"}) == "yes"
    assert pool.run(os.getenv, {"key": "DSPOOL_TEST_REMOVED"}) is None


@pytest.mark.parametrize("start_method", ["template", "spawn"])
def test_the_defaults_of_a_workers_environment_can_be_changed_and_removed(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LITELLM_LOCAL_MODEL_COST_MAP"):
        monkeypatch.delenv(name, raising=False)
    env = {"OMP_NUM_THREADS": None, "LITELLM_LOCAL_MODEL_COST_MAP": "false"}
    pool = make_pool(workers=1, env=env, start_method=start_method)
    found = {name: pool.run(os.getenv, {"key": f"{name}_NUM_THREADS"}) for name in ("OMP", "MKL")}
    assert found == {"OMP": None, "MKL": "1"}
    assert pool.run(os.getenv, {"key": "LITELLM_LOCAL_MODEL_COST_MAP"}) == "false"
